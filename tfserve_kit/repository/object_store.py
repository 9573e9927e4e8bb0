"""Object stores, such as Google Cloud Storage and S3, through fsspec."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tfserve_kit import redaction
from tfserve_kit.errors import PushRefused, TfkitError
from tfserve_kit.progress import Progress
from tfserve_kit.repository.copying import Count
from tfserve_kit.repository.intake import CHUNK_BYTES, Intake, Limits

_WORKERS = 8
_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # of the disk here, not of the store


class Store:
    """One folder of an object store; `fs` is fsspec's file system, `path` its way there.

    Raises:
        PushRefused: the package for this kind of store is missing, or the URL is of no kind known.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.shown = redaction.url(url)
        with self.talking():
            import fsspec

            fs, path = fsspec.core.url_to_fs(url)
        self.fs: Any = fs
        self.path: str = path.rstrip("/")

    @contextlib.contextmanager
    def talking(self) -> Iterator[None]:
        """Translate what a store's client says, which may be anything."""
        try:
            yield
        except TfkitError:
            raise
        except ImportError as error:
            raise PushRefused(
                f"{self.shown} needs a package that is not installed ({error.name or error})",
                remedy="pip install 'tfserve-kit[cloud]'",
            ) from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _OURS:
                raise
            raise PushRefused(
                f"{self.shown}: {redaction.text(_said(error), self.url)}",
                remedy="check the address, and the credentials its client finds on this machine",
            ) from error

    def files(self, inner: str = "") -> dict[str, dict[str, Any]]:
        """List all files below a path anew: relative path to what is known of each."""
        top = f"{self.path}/{inner}".rstrip("/")
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(top, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.fs._strip_protocol(top)) + 1  # noqa: SLF001 (its documented name)
        names = {path[start:]: info for path, info in found.items()}
        # Some tools store an empty object for a folder.
        return {name: info for name, info in names.items() if name and not name.endswith("/")}

    def is_file(self) -> bool:
        """Say whether the path is one object."""
        self.fs.invalidate_cache()
        return bool(self.fs.isfile(self.path))

    def chunks(self, path: str, counted: Callable[[int], None]) -> Iterator[bytes]:
        """Yield the bytes of an object, each counted before."""
        with self.fs.open(path, "rb", block_size=8 * CHUNK_BYTES) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                counted(len(chunk))
                yield chunk

    def save(self, target: Path, limits: Limits, progress: Progress) -> None:
        """Store the object at the path as a file."""
        info = self.fs.info(self.path)
        intake = Intake(target.parent, limits)
        counted = _counting(intake, Count(progress, info.get("size") or 0))
        with target.open("xb") as file:
            for chunk in self.chunks(self.path, counted):
                file.write(chunk)

    def download(
        self, names: dict[str, dict[str, Any]], intake: Intake, progress: Progress
    ) -> None:
        """Bring objects into a folder, several at once: relative path to what is known of each."""
        total = sum(info.get("size") or 0 for info in names.values())
        counted = _counting(intake, Count(progress, total))

        def one(name: str) -> None:
            file = intake.add_file(name, self.chunks(names[name]["name"], counted))
            wanted = names[name].get("size")
            if wanted is not None and file.size_bytes != wanted:
                raise PushRefused(
                    f"{self.shown}/{name} has {wanted:,} bytes, {file.size_bytes:,} came",
                    remedy="push again once nobody writes there",
                )

        at_once(one, names)


def _counting(intake: Intake, count: Count) -> Callable[[int], None]:
    def counted(size_bytes: int) -> None:
        intake.count(size_bytes)
        count.add(size_bytes)

    return counted


def at_once(act: Callable[[str], object], names: Any) -> None:
    """Do something for each name, several at once; the first failure ends it and is raised."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            for job in [pool.submit(act, name) for name in names]:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _said(error: Exception) -> str:
    """Return an error's text, its type where it has none."""
    if isinstance(error, FileNotFoundError):
        return "there is nothing"
    return str(error).strip() or type(error).__name__
