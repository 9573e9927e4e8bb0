"""Between Python and the disk: every file operation can be counted, killed at, failed or recorded.

`observed(observer)` wraps the functions of the system for a `with` block; the observer gets
`(name, real, *arguments)` for each call and decides what becomes of it.
"""

import builtins
import contextlib
import ctypes
import fcntl
import io
import itertools
import os
import signal
import threading
from unittest import mock

NAMES = (
    "open close read write pwrite mkdir rename replace link symlink unlink remove rmdir fsync"
    " fdatasync chmod fchmod truncate ftruncate copy_file_range sendfile utime"
    " stat lstat scandir listdir"
)
# What changes nothing on the disk, so that a kill there would repeat the point before.
LOOKS = {"read", "stat", "lstat", "scandir", "listdir"}
FOREIGN = ("syncfs", "renameat2")  # called through ctypes


class Count:
    """Counts operations; those that only look do not count where `looks` is off."""

    def __init__(self, *, looks=True):
        self.names, self.looks = [], looks
        self._numbers, self._lock = itertools.count(1), threading.Lock()

    def number(self, name):
        """Return the number of the operation that happens now, 0 where it does not count."""
        if name in LOOKS and not self.looks:
            return 0
        with self._lock:
            self.names.append(name)
            return next(self._numbers)

    def __call__(self, name, real, *arguments, **options):
        self.number(name)
        return real(*arguments, **options)


class KillAt(Count):
    """Ends the process before the nth operation, or after it."""

    def __init__(self, nth, *, after):
        super().__init__(looks=False)
        self.nth, self.after = nth, after

    def __call__(self, name, real, *arguments, **options):
        here = self.number(name) == self.nth
        if here and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return real(*arguments, **options)
        finally:
            if here:
                os.kill(os.getpid(), signal.SIGKILL)


class FailAt(Count):
    """Fails the nth operation, or with `onwards` each from there on; without a code: Ctrl-C."""

    def __init__(self, nth, code, *, onwards=False):
        super().__init__()
        self.nth, self.code, self.onwards = nth, code, onwards

    def __call__(self, name, real, *arguments, **options):
        number = self.number(name)
        if number != self.nth and not (self.onwards and number > self.nth):
            return real(*arguments, **options)
        if name == "close":  # which frees the descriptor even where it fails
            real(*arguments, **options)
        if self.code is None:
            raise KeyboardInterrupt
        raise OSError(self.code, os.strerror(self.code))


class Meddler(Count):
    """Does something before the nth operation of a kind."""

    def __init__(self, name, nth, act):
        super().__init__()
        self.name, self.nth, self.act = name, nth, act

    def __call__(self, name, real, *arguments, **options):
        self.number(name)
        if name == self.name and self.names.count(name) == self.nth:
            self.act()
        return real(*arguments, **options)


class _File(io.FileIO):
    """What `open` returns below its buffers."""

    def __init__(self, observer, file, mode, closefd, opener):
        self._observer = observer
        super().__init__(file, mode, closefd, opener or _open_descriptor)

    def write(self, data):
        return self._observer(
            "write", lambda _, data: super(_File, self).write(data), self.fileno(), data
        )

    def readinto(self, buffer):
        return self._observer("read", lambda _: super(_File, self).readinto(buffer), self.fileno())

    def readall(self):
        return self._observer("read", lambda _: super(_File, self).readall(), self.fileno())

    def close(self):
        if self.closed or not self.closefd:
            super().close()
        else:
            self._observer("close", lambda _: super(_File, self).close(), self.fileno())


def _open_descriptor(path, flags):
    return os.open(path, flags, 0o666)


def _opener(observer):
    """Return an `open` whose file operations are observed."""

    def open(  # noqa: A001
        file,
        mode="r",
        buffering=-1,
        encoding=None,
        errors=None,
        newline=None,
        closefd=True,
        opener=None,
    ):
        raw = _File(observer, file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if "b" in mode and buffering == 0:
            return raw
        kind = io.BufferedReader if mode.strip("bt") == "r" else io.BufferedWriter
        buffered = (io.BufferedRandom if "+" in mode else kind)(raw)
        if "b" in mode:
            return buffered
        text = io.TextIOWrapper(buffered, encoding, errors, newline)
        text.mode = mode
        return text

    return open


class _Library:
    """The C library, of which some functions are observed."""

    def __init__(self, observer, real):
        self._observer, self._real = observer, real

    def __getattr__(self, name):
        function = getattr(self._real, name)
        return self._observed(name, function) if name in FOREIGN else function

    def _observed(self, name, function):
        def call(*arguments):
            try:
                return self._observer(name, function, *arguments)
            except OSError as error:
                ctypes.set_errno(error.errno)
                return -1

        return call


@contextlib.contextmanager
def observed(observer):
    """Send every operation on files in the `with` block through an observer."""
    inside = threading.local()

    def guarded(name, real, *arguments, **options):
        if getattr(inside, "yes", False):  # the observer's own operations
            return real(*arguments, **options)
        inside.yes = True
        try:
            return observer(name, real, *arguments, **options)
        finally:
            inside.yes = False

    def wrapper(name, real):
        def call(*arguments, **options):
            return guarded(name, real, *arguments, **options)

        return call

    opened, library = _opener(guarded), ctypes.CDLL
    with contextlib.ExitStack() as stack:
        for name in NAMES.split():
            patched = wrapper(name, getattr(os, name))
            for support in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
                if getattr(os, name) in support:
                    support.add(patched)
                    stack.callback(support.discard, patched)
            stack.enter_context(mock.patch.object(os, name, patched))
        stack.enter_context(mock.patch.object(fcntl, "ioctl", wrapper("ioctl", fcntl.ioctl)))
        stack.enter_context(mock.patch.object(fcntl, "flock", wrapper("flock", fcntl.flock)))
        stack.enter_context(mock.patch.object(io, "open", opened))
        stack.enter_context(mock.patch.object(builtins, "open", opened))
        stack.enter_context(
            mock.patch.object(ctypes, "CDLL", lambda *a, **k: _Library(guarded, library(*a, **k)))
        )
        yield observer
