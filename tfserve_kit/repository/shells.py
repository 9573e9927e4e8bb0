"""Base paths that only a shell reaches: on another machine, in a container, on a cluster's volume.

Any command will do that runs a POSIX shell there and passes its standard input on, such as
`ssh gpu-1`, `docker exec -i c` or `kubectl exec -i writer --`. A version goes through it as a tar
archive into a hidden folder, is checked there, and becomes visible by one rename, as on a disk
here; see `staging`. What a killed push leaves is removed by the next one of the same machine.

Over there `sh`, `tar`, `mv` and `sync` are needed. Where `sha256sum` is missing, what arrived is
sent back to be checked here.
"""

import hashlib
import io
import shlex
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import IO, Any

from tfserve_kit import safe_text
from tfserve_kit.errors import PushRefused, TfkitError
from tfserve_kit.progress import Progress
from tfserve_kit.repository import staging
from tfserve_kit.repository.disk import Count
from tfserve_kit.repository.intake import CHUNK_BYTES
from tfserve_kit.repository.manifest import File, Files
from tfserve_kit.repository.versions import RETIRED_PREFIX, numbers_in
from tfserve_kit.savedmodel import GRAPH_FILES

# Each verb is one call. In a staging folder `content` is the version, `sums` its checksums. `mv -T`
# never moves into a folder that is there; where it is unknown, only the look before it says so.
_SCRIPT = """
set -eu
verb=$1 base=$2
if [ "$verb" = list ] && [ ! -e "$base" ]; then exit 0; fi
made=
if [ "$verb" = stage ] && [ ! -e "$base" ]; then mkdir -p -- "$base"; made=1; fi
cd -- "$base/"
home=$PWD t=
if mv --help 2>&1 | grep -q -e -T; then t=-T; fi
move() {
  if [ -e "$2" ] || [ -L "$2" ]; then echo "$2 is there already" >&2; exit 3; fi
  mv $t -- "$1" "$2"
  sync
}
case $verb in
list) cd -- "${3:-.}"; ls -a ;;
read) cat -- "$3" ;;
stage)
  trap 'cd "$home"; rm -rf -- "$3"; if [ "$made" ]; then rmdir -- "$home"; fi' EXIT
  trap 'exit 1' HUP INT TERM PIPE
  mkdir -m 700 -- "$3"
  tar -xof - -C "$3"
  cd -- "$3/content"
  if [ "$(find . -type f | wc -l)" -ne "$4" ]; then echo "not all files arrived" >&2; exit 1; fi
  if command -v sha256sum >/dev/null; then
    sha256sum -c ../sums >../checked 2>&1 || { grep -v ': OK$' ../checked >&2; exit 1; }
    echo checked
  fi
  sync
  trap - EXIT
  ;;
back) tar -cf - -C "$3" content ;;
publish)
  move "$3/content" "$4"
  rm -rf -- "$3"
  ;;
rename) move "$3" "$4" ;;
remove) shift 2; rm -rf -- "$@" ;;
esac
"""
_PROBE_STATUS = 7  # what no command in between ends with by itself
_PROBE_S = 60.0
_END_S = 5.0


class Place:
    """A base path behind a command.

    Args:
        command: runs a shell over there, as one would type it.
        base_path: the folder of the model's versions over there.
    """

    def __init__(self, command: str, base_path: str) -> None:
        self.command, self.base_path = command, base_path
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise PushRefused(f"--via {command!r}: {error}", remedy="close the quotes") from error
        if not self._words:
            raise PushRefused("--via is empty", remedy="give a command, such as 'ssh gpu-1'")
        self._is_parsed_again: bool | None = None

    def __str__(self) -> str:
        return f"{self.base_path} by way of {self.command}"

    def names(self, inside: str = ".") -> list[str]:
        """Return what the base path, or a folder in it, holds; nothing where it is missing.

        Raises:
            PushRefused: the command does not run a shell, or the folder cannot be read.
        """
        printed: bytes = self._run("list", inside)
        return [name for name in printed.decode("utf-8", "replace").splitlines() if name]

    def sweep(self, names: Iterable[str]) -> None:
        """Remove what killed pushes of this machine left, of the names that are there."""
        if gone := [name for name in names if staging.is_abandoned(name)]:
            self._run("remove", *gone)

    def fetch_graph(self, number: int, folder: Path) -> Path | None:
        """Store the graph of a version as a directory of its own; None where it has none."""
        for name in GRAPH_FILES:
            with suppress(PushRefused):
                content = self._run("read", f"{number}/{name}")
                folder.mkdir(exist_ok=True)
                (folder / name).write_bytes(content)
                return folder
        return None

    def stage(self, root: Path, files: Files, counted: Callable[[int], None]) -> str:
        """Send a version into a hidden folder, and have it checked there; return its name.

        Args:
            root: the version here.
            files: size and checksum of each of its files.
            counted: told the bytes of each file that was sent.

        Raises:
            PushRefused: it did not arrive whole; what the next push does not find is gone.
        """
        name = staging.fresh_name()
        sums = "".join(f"{file.sha256}  {path}\n" for path, file in sorted(files.items())).encode()

        def send(pipe: IO[bytes]) -> None:
            with tarfile.open(fileobj=pipe, mode="w|", bufsize=CHUNK_BYTES) as archive:
                archive.addfile(_entry("sums", len(sums)), io.BytesIO(sums))
                for folder in sorted(each for each in (root, *root.rglob("*")) if each.is_dir()):
                    archive.addfile(_entry(_inside(root, folder), 0, tarfile.DIRTYPE))
                for path, file in sorted(files.items()):
                    with (root / path).open("rb") as stream:
                        archive.addfile(_entry(f"content/{path}", file.size_bytes), stream)
                    counted(file.size_bytes)

        try:
            if b"checked" not in self._run("stage", name, str(len(files)), send=send):
                self._check_back(name, files)
        except PushRefused:
            self.remove(name)
            raise
        return name

    def publish(self, name: str, number: int) -> None:
        """Make a staged version visible; where the answer is lost, look whether it is.

        Raises:
            PushRefused: it is not visible, or nobody knows; says which.
        """
        try:
            self._run("publish", name, str(number))
        except PushRefused as error:
            try:
                there = self.names()
                # What was killed after the rename has left a folder without the version.
                is_staged = name in there and "content" in self.names(name)
            except PushRefused:
                raise PushRefused(
                    f"version {number} may be visible or not in {self}: {error.message}",
                    remedy=f"look there once it can be reached; rename {number} to "
                    f"{RETIRED_PREFIX}{number} to take it out of service",
                ) from error
            if is_staged or str(number) not in there:
                raise
            self.remove(name)

    def retire(self, number: int) -> bool:
        """Take a version out of service, as `versions.retire` does here; return whether it was.

        Raises:
            PushRefused: it could not be renamed.
        """
        is_there = str(number) in self.names()
        if is_there:
            self._run("rename", str(number), f"{RETIRED_PREFIX}{number}")
        return is_there

    def remove(self, name: str) -> None:
        """Remove a staged version, where that can be done."""
        with suppress(PushRefused):
            self._run("remove", name)

    def _check_back(self, name: str, files: Files) -> None:
        """Have a staged version sent back, and compare it with what was sent."""
        if self._run("back", name, receive=_contents) != dict(files):
            raise PushRefused(f"what arrived in {self} is not what was sent", remedy=_AGAIN)

    def _run(
        self,
        verb: str,
        *arguments: str,
        send: Callable[[IO[bytes]], None] | None = None,
        receive: Callable[[IO[bytes]], Any] = methodcaller("read"),
    ) -> Any:
        """Run one verb of the script over there; return what is made of what it printed."""
        if self._is_parsed_again is None:
            self._is_parsed_again = self._probed()
        line = ["sh", "-c", _SCRIPT, "tfkit", verb, self.base_path, *arguments]
        words = [shlex.join(line)] if self._is_parsed_again else line
        with _started([*self._words, *words]) as (process, out, err):
            if send and process.stdin:
                with suppress(BrokenPipeError):  # what it says tells more
                    send(process.stdin)
            with suppress(BrokenPipeError):
                process.communicate()
            if process.returncode:
                raise PushRefused(
                    f"cannot {_DOES[verb]} {self}: {_said(err) or _status(process.returncode)}",
                    remedy=_AGAIN,
                )
            out.seek(0)
            return receive(out)

    def _probed(self) -> bool:
        """Say whether a shell parses the words once more over there, as with ssh."""
        with _started([*self._words, "sh", "-c", f"exit {_PROBE_STATUS}"]) as (process, _, err):
            try:
                process.communicate(timeout=_PROBE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.returncode in {0, _PROBE_STATUS}:
                return not process.returncode
            said = _said(err) or _status(process.returncode)
            raise PushRefused(
                f"--via {self.command!r} runs no shell: {said}",
                remedy=f"try it by hand: {self.command} sh -c 'echo hello'",
            )


_Deliver = Callable[[Place, Callable[[], None]], object]
"""Told a place and what makes the version visible there: calls that, and raises where the version
does not serve."""


def serving_graphs(held: Mapping[Place, Sequence[str]], folder: Path) -> Iterator[Path]:
    """Yield a directory with the graph of each place's highest version, where that has one.

    Args:
        held: what each place holds.
        folder: where the directories are made.
    """
    for index, (place, names) in enumerate(held.items()):
        numbers = numbers_in(names, "")
        graph = numbers and place.fetch_graph(max(numbers), folder / f"older-{index}")
        if graph:
            yield graph


@contextmanager
def staged(
    places: Sequence[Place], root: Path, files: Files, progress: Progress
) -> Iterator[dict[Place, str]]:
    """Give the name of a copy in each place; those that are left in it afterwards are removed.

    Args:
        places: where to copy, all at once.
        root: the version here.
        files: size and checksum of each of its files.
        progress: told the bytes sent.

    Raises:
        PushRefused: a copy failed, and says where. None is left.
    """
    progress.step(f"copying to {len(places)} places")
    count = Count(progress, len(places) * sum(file.size_bytes for file in files.values()))
    copies: dict[Place, str] = {}
    failed: list[PushRefused] = []
    try:
        with ThreadPoolExecutor(len(places)) as pool:
            jobs = {place: pool.submit(place.stage, root, files, count.add) for place in places}
            for place, job in jobs.items():
                try:
                    copies[place] = job.result()
                except PushRefused as error:
                    failed.append(error)
        if failed:
            text = "; ".join(error.message for error in failed)
            raise PushRefused(f"{text}; no place has changed", remedy=failed[0].remedy)
        _require_apart(copies)
        yield copies
    finally:
        for place, name in copies.items():
            place.remove(name)


def _require_apart(copies: Mapping[Place, str]) -> None:
    """Refuse places that are one folder: it could have a version only once."""
    for place in copies if len(copies) > 1 else ():
        here = set(place.names())
        for other, name in copies.items():
            if other is not place and name in here:
                raise PushRefused(f"{place} and {other} are the same folder", remedy="give it once")


def publish(
    copies: dict[Place, str], number: int, wave: int, deliver: _Deliver, progress: Progress
) -> None:
    """Make copies visible, each wave of places once the one before it is delivered.

    Whatever fails, also Ctrl-C, takes the version out of service again wherever it was visible.

    Args:
        copies: name of the copy in each place; those published are taken out.
        number: the version.
        wave: in how many places at once.
        deliver: makes a copy visible, and sees that it serves.
        progress: told the steps.
    """
    visible: list[Place] = []  # not where another push has taken the number meanwhile

    def publish_in(place: Place) -> None:
        place.publish(copies[place], number)
        visible.append(place)
        del copies[place]

    order, begun = list(copies), 0
    try:
        while begun < len(order):
            now = order[begun : begun + wave]
            begun += len(now)
            progress.step(f"publishing version {number} in {', '.join(map(str, now))}")
            with ThreadPoolExecutor(len(now)) as pool:
                jobs = [pool.submit(deliver, each, partial(publish_in, each)) for each in now]
            for job in jobs:
                job.result()
    except BaseException as error:
        outcome = _taken_back(visible, number)
        if isinstance(error, TfkitError):
            error.message += f"; {outcome}"
        else:
            progress.note(f"Note: {outcome}")
        raise


def _taken_back(places: Sequence[Place], number: int) -> str:
    """Retire a version wherever it is, last place first, and say what came of it."""
    gone, stuck = [], []
    for place in reversed(places):
        try:
            if place.retire(number):
                gone.append(str(place))
        except PushRefused as error:
            stuck.append(error.message)
    text = f"version {number} was retired again in {', '.join(gone) or 'no place: none has it'}"
    return "; ".join([text, *stuck])


_AGAIN = "mend that, then push again"
_DOES = {
    "list": "read",
    "read": "read a version in",
    "stage": "copy the version to",
    "back": "check the version in",
    "publish": "publish the version in",
    "rename": "retire the version in",
    "remove": "remove a copy from",
}


@contextmanager
def _started(
    words: list[str],
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]]:
    """Start a command whose output goes to files; it is ended where the block fails."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=out, stderr=err)
        except OSError as error:
            raise PushRefused(
                f"cannot run {words[0]!r}: {error.strerror}", remedy="install it, or mend --via"
            ) from error
        try:
            yield process, out, err
        finally:
            if process.poll() is None:
                if process.stdin:
                    with suppress(OSError):
                        process.stdin.close()  # over there tar ends, and what it made is removed
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_END_S)
                process.kill()
                process.wait()


def _said(err: IO[bytes]) -> str:
    """Return the last lines of what a command said, on one."""
    err.seek(0)
    lines = safe_text.printable(err.read().decode("utf-8", "replace").strip()).splitlines()
    return "; ".join(lines[-3:])[-500:]


def _status(code: int) -> str:
    return f"it ended with status {code}" if code > 0 else f"it was killed (signal {-code})"


def _entry(name: str, size_bytes: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.mtime = size_bytes, kind, int(time.time())
    entry.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644  # servers may be other users
    return entry


def _contents(archive: IO[bytes]) -> dict[str, File]:
    """Return size and checksum of each file of a version that was sent back."""
    found = {}
    with tarfile.open(fileobj=archive) as members:
        for member in members:
            if member.isfile():
                stream: Any = members.extractfile(member)
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                found[member.name.removeprefix("content/")] = File(member.size, digest)
    return found


def _inside(root: Path, folder: Path) -> str:
    return (Path("content") / folder.relative_to(root)).as_posix()
