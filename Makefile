SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
PORT ?= 8000
CHAPTERS ?= $(sort $(wildcard book/*.ipynb))
SITE := _build/html
BIN := .venv/bin
STATE := $(CURDIR)/.cache

# Everything that would otherwise be written to the home directory or to /tmp is written to .cache in the checkout.
export JUPYTER_CONFIG_DIR := $(STATE)/jupyter/config
export JUPYTER_DATA_DIR := $(STATE)/jupyter/data
export JUPYTER_RUNTIME_DIR := $(STATE)/jupyter/runtime
export JUPYTER_PLATFORM_DIRS := 1
export IPYTHONDIR := $(STATE)/ipython
export MPLCONFIGDIR := $(STATE)/matplotlib
export XDG_CACHE_HOME := $(STATE)/xdg
export PYTEST_ADDOPTS := -o cache_dir=$(STATE)/pytest
export HYPOTHESIS_STORAGE_DIRECTORY := $(STATE)/hypothesis
export TMPDIR := $(STATE)/tmp
# A download cache that was asked for by name is used; pip's default one lies in the home directory.
ifndef PIP_CACHE_DIR
export PIP_NO_CACHE_DIR := 1
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The kernel and the packages of .venv, whatever else the user has installed or set.
export JUPYTER_PREFER_ENV_PATH := 1
unexport JUPYTER_PATH JUPYTER_CONFIG_PATH PYTHONPATH PYTHONHOME PYTHONSTARTUP MPLBACKEND MATPLOTLIBRC
# Without bytecode every kernel, and every process of a test, compiles the library anew.
unexport PYTHONDONTWRITEBYTECODE

export PYTHONUTF8 := 1
export PYTHONUNBUFFERED := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# Small matrices: a second thread costs more than it brings, and on a busy machine much more.
OMP_NUM_THREADS ?= 1
MKL_NUM_THREADS ?= $(OMP_NUM_THREADS)
export OMP_NUM_THREADS MKL_NUM_THREADS
# glibc gives the memory of large tensors back in every step and gets it anew, page by page: 6 % of a step of training.
export MALLOC_MMAP_THRESHOLD_ := 33554432
export MALLOC_TRIM_THRESHOLD_ := 2147483648

.PHONY: help env book test test-noise test-portable faults execute reproduce benchmark serve check lighthouse pdf zip lint clean distclean mutation

help:
	@echo 'make book            install what is needed, execute the chapters, build the site'
	@echo 'make test            unit tests, then every chapter with every output compared'
	@echo 'make serve           the built site on http://localhost:$(PORT) (PORT=...)'
	@echo 'make execute         run the chapters and store their outputs (CHAPTERS=book/02-*.ipynb)'
	@echo 'make check           examine the built pages: links, weight, formulas, print, accessibility'
	@echo 'make pdf             each chapter and the whole book as PDF, in the site (needs Chromium)'
	@echo 'make zip             the site as one file that works without a server'
	@echo 'make lighthouse      measure five pages as a phone loads them (needs Chromium and npm)'
	@echo 'make test-noise      every chapter again under rounding noise (SEEDS="1 2 3")'
	@echo 'make test-portable   every chapter again, for other instruction sets and thread counts'
	@echo 'make faults          faults planted in the library, each to be seen by a unit test and by a chapter (NAMES=...)'
	@echo 'make mutation        the library changed in one place at a time: which changes no test sees (MODULES="init norm")'
	@echo 'make reproduce       the published reference run at full length: half an hour on two cores'
	@echo 'make benchmark       what a training step costs, beside a plain loop and bare products: two minutes'
	@echo 'make lint            ruff over code and notebooks, types of the library'
	@echo 'make clean           remove the built site and caches; make distclean also removes .venv'

# What has to be there before anything runs. The kernel's own log says on every start that it uses TCP on localhost, so
# only its errors are let through; they are what a reader has to see.
.cache/ready: Makefile
	@mkdir -p '$(TMPDIR)' '$(IPYTHONDIR)/profile_default'
	@echo 'c.IPKernelApp.log_level = 40' > '$(IPYTHONDIR)/profile_default/ipython_kernel_config.py'
	@touch '$@'

# The stamp is newer than what it was made from; a changed pin brings the environment up to date.
env: .cache/ready .venv/.installed

.venv/.installed: requirements.txt constraints.txt pyproject.toml reproduction/pyproject.toml | .cache/ready
	@command -v '$(PYTHON)' >/dev/null || { echo "'$(PYTHON)' was not found; name a Python 3.11 or later: make PYTHON=/path/to/python3" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"{sys.executable} is Python {sys.version.split()[0]}, and 3.11 or later is needed: make PYTHON=/path/to/python3")'
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	test -x $(BIN)/python || '$(PYTHON)' -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps -e . -e reproduction
	@touch $@

.venv/.installed-check .venv/.installed-mutation: .venv/.installed-%: requirements-%.txt .venv/.installed
	$(BIN)/python -m pip install --quiet -r $< -c constraints.txt
	@touch $@

# Stored results are keyed by a chapter's code alone; _build is dropped when what that code runs on has changed.
book: env
	@$(BIN)/python tools/fingerprint.py _build
	@# Sphinx warns of a page only when it reads it: after a failure every page is read again, or the next build would pass.
	$(BIN)/jupyter-book build . -W --keep-going || { rm -rf $(SITE) _build/.doctrees; exit 1; }
	@echo
	@echo "The book: $(CURDIR)/$(SITE)/index.html"

# The cells of a chapter, and the tests of a file, stay together in one process.
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=120 --dist=loadscope

test: env
	$(BIN)/python -m pytest tests reproduction book $(NBVAL) --numprocesses=2 $(ARGS)

# Other machines, as far as one machine can show them: a processor cannot run instructions that it does not have.
SETS := import torch; names, best = ["default", "avx2", "avx512"], torch.backends.cpu.get_cpu_capability().lower(); \
  print(*names[: names.index(best) + 1] if best in names else ["default"])

# Each configuration in turn, also after one that fails; those that failed are named at the end.
test-portable: env
	@failed=; for capability in $$($(BIN)/python -c '$(SETS)'); do for threads in 1 2; do \
	  echo "ATEN_CPU_CAPABILITY=$$capability OMP_NUM_THREADS=$$threads"; \
	  ATEN_CPU_CAPABILITY=$$capability OMP_NUM_THREADS=$$threads MKL_NUM_THREADS=$$threads \
	    $(BIN)/python -m pytest book $(NBVAL) --numprocesses=$$((2 / threads)) -q $(ARGS) || failed+=", $$capability with $$threads"; \
	done; done; test -z "$$failed" || { echo "these do not hold: $${failed#, }" >&2; exit 1; }

# One seed is one processor that rounds in its own way.
SEEDS ?= 1 2 3 4 5

# The shell is given SEEDS as it stands, to be read as words and nothing else.
test-noise: export SEEDS := $(SEEDS)
test-noise: env
	@set -f; for seed in $${SEEDS:-none}; do case $$seed in *[!0-9]*) \
	  echo "SEEDS: whole numbers are needed, such as SEEDS='1 2 3', got '$$SEEDS'" >&2; exit 2;; esac; done
	@failed=; for seed in $$SEEDS; do echo "noise seed $$seed"; \
	  $(BIN)/python -m pytest book $(NBVAL) --numprocesses=2 -q --noise=$$seed $(ARGS) || failed+=" $$seed"; \
	done; test -z "$$failed" || { echo "noise seeds under which the book does not hold:$$failed" >&2; exit 1; }

# The table is stored by `make -s faults > tests/FAULTS.md`.
faults: env
	@$(BIN)/python tools/faults.py $(NAMES)

# An hour for all of them on two cores; ARGS=--survivors tries only what survived the last time.
MODULES ?= rng gaussian activations init layers scalar backward norm data models ensemble history trace train stats \
  meanfield

mutation: env .venv/.installed-mutation
	@$(BIN)/python tools/mutation.py $(MODULES) $(ARGS)

execute: env
	@$(BIN)/python tools/execute.py $(CHAPTERS)

# Not part of any other target. It stores the figures that the chapter on the reference run reads.
reproduce: env
	@$(BIN)/python reproduction/run.py $(PROCESSES)

# With the memory settings above, as everything else here runs.
benchmark: env
	@$(BIN)/python benchmarks/training.py $(ARGS)

serve: env
	@test -e $(SITE)/index.html || { echo 'There is no site yet: make book' >&2; exit 1; }
	@echo 'http://localhost:$(PORT)'
	@$(BIN)/python -m http.server $(PORT) --bind localhost --directory $(SITE)

check: env .venv/.installed-check
	@test -e $(SITE)/index.html || { echo 'There is no site yet: make book' >&2; exit 1; }
	$(BIN)/python -m pytest tests/site $(ARGS)

pdf zip: env .venv/.installed-check
	@test -e $(SITE)/index.html || { echo 'There is no site yet: make book' >&2; exit 1; }
	@$(BIN)/python tools/take.py $@

LIGHTHOUSE := .cache/lighthouse/node_modules/.package-lock.json

$(LIGHTHOUSE): tests/site/package.json tests/site/package-lock.json | .cache/ready
	@command -v npm >/dev/null || { echo 'npm was not found; on Debian and Ubuntu: apt install npm' >&2; exit 1; }
	mkdir -p .cache/lighthouse
	cp tests/site/package.json tests/site/package-lock.json .cache/lighthouse
	cd .cache/lighthouse && npm ci --no-audit --no-fund --cache ../npm
	@touch $@

lighthouse: env .venv/.installed-check $(LIGHTHOUSE)
	@test -e $(SITE)/index.html || { echo 'There is no site yet: make book' >&2; exit 1; }
	@$(BIN)/python tests/site/lighthouse.py

lint: env
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/ruff format --check --diff . 2>/dev/null || echo '(the layout differs from ruff format; this is advice)'

clean:
	rm -rf _build .cache .pytest_cache

distclean: clean
	rm -rf .venv mmlib.egg-info reproduction/*.egg-info
