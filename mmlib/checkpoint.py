"""A training run on disk: what it takes to go on with it, as if it had never been stopped."""

import os
import pickle
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from mmlib import rng
from mmlib.history import History, Series

_FORMAT = 1
Generators = torch.Generator | Sequence[torch.Generator]


def save(path: str | PathLike[str], model: nn.Module, history: History, *, generator: Generators) -> None:
    """Writes a run to a file, whole or not at all: parameters, buffers and modes, the history, and the generators.

    `generator` is what the minibatches are drawn from, one or a sequence. What draws from the global random state, such
    as torch's Dropout, is not part of it. Raises OSError if the file cannot be written; an older one is then as it was.

    >>> import tempfile
    >>> from mmlib import data, models, rng, train
    >>> names, g = data.corpus(), rng.generator(0, 'batches')
    >>> model = models.MLP(width=8, depth=1).build(rng.generator(0, 'weights'))
    >>> history = train.train(model, data.minibatches(names.dev, 32, 10, generator=g), lr=0.1)
    >>> with tempfile.TemporaryDirectory() as place:
    ...     save(f'{place}/run', model, history, generator=g)
    ...     len(resume(f'{place}/run', model, generator=g).loss.steps)
    10
    """
    path = Path(path)
    run = {
        "format": _FORMAT,
        "model": _state(model),
        "modes": _modes(model),
        "generators": [g.get_state() for g in _generators(generator)],
        "loss": tuple(history.loss),
        "lr": tuple(history.lr),
        "probes": {name: tuple(series) for name, series in history.probes.items()},
        "ended": history.ended,
        "diverged": history.diverged,
    }
    beside = path.with_name(f"{path.name}.new-{os.getpid()}")
    try:
        with beside.open("wb") as file:
            torch.save(run, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def resume(path: str | PathLike[str], model: nn.Module, *, generator: Generators) -> History:
    """Reads what `save` wrote into a model and its generators; the history is for `train(..., after=history)`.

    200 steps at once are then 100 and 100, bit by bit. Raises FileNotFoundError if there is no such file, ValueError if
    it is no run, or the run of another model or number of generators: all are then as they were.

    >>> import tempfile
    >>> from mmlib import models
    >>> from mmlib.rng import generator
    >>> g, model = generator(0, 'batches'), models.MLP(width=8, depth=1).build(generator(0, 'weights'))
    >>> with tempfile.TemporaryDirectory() as place:
    ...     try:
    ...         resume(f'{place}/run', model, generator=g)
    ...     except FileNotFoundError as error:
    ...         print(type(error).__name__)
    FileNotFoundError
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a run that was written by save is needed")
    try:
        run = torch.load(path, weights_only=True)
        if run["format"] != _FORMAT:
            raise ValueError(f"its format is {run['format']}, not {_FORMAT}")
        loss, lr = Series(*run["loss"]), Series(*run["lr"])
        probes = {name: Series(*series) for name, series in run["probes"].items()}
        saved, modes, states = run["model"], run["modes"], run["generators"]
        history = History(loss, lr, probes, run["ended"], run["diverged"])
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: this is not a run that was written whole by save: {error}") from error
    state, generators = _state(model), _generators(generator)
    if _described(saved) != _described(state) or modes.keys() != _modes(model).keys():
        differ = sorted(set(_described(saved).items()) ^ set(_described(state).items()))
        raise ValueError(f"{path}: the run of another model; these differ: {differ or sorted(modes)}")
    if len(states) != len(generators):
        raise ValueError(f"{path}: a run with {len(states)} generators, got {len(generators)}")
    with torch.no_grad():
        for name, x in state.items():
            x.copy_(saved[name])
    for name, module in model.named_modules():
        module.training = modes[name]
    for g, s in zip(generators, states, strict=True):
        g.set_state(s)
    return history


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, those too that a state_dict leaves out."""
    return {name: x.detach() for named in (model.named_parameters(), model.named_buffers()) for name, x in named}


def _modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def _described(state: dict[str, Tensor]) -> dict[str, str]:
    return {name: f"{x.dtype} {tuple(x.shape)}" for name, x in state.items()}


def _generators(one_or_more: Generators) -> list[torch.Generator]:
    return [rng.given(g) for g in (one_or_more if isinstance(one_or_more, Sequence) else [one_or_more])]
