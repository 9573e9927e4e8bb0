"""Embedded servers for tests that start many: they are forked where tensorflow is imported already.

What the command line does before and after is `main`, as ever; other tests run the command itself.
"""

import contextlib
import multiprocessing
import os
import sys
from pathlib import Path

from tfserve_kit.embedded import __main__ as command

ROOT = Path(__file__).parents[2]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])

if "pytest" not in sys.modules:  # in the process that forks: as a server does at its start
    from tfserve_kit.embedded import loader, server  # noqa: F401

    loader.skip_package_import()
    loader._runtime()


class Server(_context.Process):
    """A server process, with what tests use of `subprocess.Popen`.

    Args:
        flags: those of tensorflow_model_server.
        output: a file for what it prints.
    """

    def __init__(self, flags, output):
        super().__init__(target=_serve, args=(flags, str(output)), daemon=True)
        with contextlib.chdir(ROOT):  # where the process that forks finds this module
            self.start()

    def poll(self):
        return self.exitcode

    def wait(self):
        self.join()


def _serve(flags, output):
    assert "tensorflow.python.client.session" in sys.modules
    os.setsid()
    for place, file, how in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY)):
        descriptor = os.open(file, how)
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.dup2(1, 2)
    sys.exit(command.main(flags))
