"""Kernels that are there at once: a pytest plugin that forks them from a process which has imported what they all do.

Ipykernel, torch and matplotlib take three seconds to import, and every chapter has a kernel of its own. Forked, it
starts with these modules and with nothing else: no notebook has run in the process that it comes from.
"""

import multiprocessing
import os
import sys
from contextlib import suppress

from jupyter_client.provisioning import local_provisioner


class Forked:
    """What jupyter_client asks of a subprocess.Popen."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self._process = process
        self.pid, self.kill, self.terminate = process.pid, process.kill, process.terminate

    def poll(self):
        return self._process.exitcode

    def wait(self):
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number):
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)


def _run(arguments, directory, environment, started):
    os.setsid()  # a signal for the kernel's group must not reach that of pytest
    started.send(None)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)

    from ipykernel.kernelapp import launch_new_instance

    from tests.plugins.preloaded import PATH

    sys.argv, sys.path[:] = arguments, PATH
    launch_new_instance()


def launch(command, *, cwd=None, env=None, **streams):
    """Starts a kernel in place of jupyter_client's launch_kernel."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.plugins.preloaded"])
    started, here = context.Pipe(duplex=False)
    arguments = command[command.index("ipykernel_launcher") :]
    process = context.Process(
        target=_run, args=(arguments, cwd or os.getcwd(), dict(env or os.environ), here), daemon=True
    )
    process.start()
    started.recv()
    return Forked(process)


def pytest_configure(config):
    if sys.platform == "linux":  # elsewhere a fork of a process that has used system libraries is not safe
        local_provisioner.launch_kernel = launch
