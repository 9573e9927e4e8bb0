"""Where pictures come from: files, folders, patterns, the web, standard input.

What a model cannot take as a picture is recognised by its content, with what to do then.
"""

import base64
import binascii
import os
import re
import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePath
from typing import BinaryIO, NamedTuple

from tfserve_kit import safe_text
from tfserve_kit.errors import InvalidRequest, UsageError, file_error
from tfserve_kit.http import downloads

# Larger files are not pictures but a mistake, and would fill the memory.
_MAX_BYTES = 256 * 1024 * 1024
# What is looked for in folders; any name will do for a file that is named itself.
SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
                      ".pnm", ".ppm", ".tif", ".tiff", ".webp"})  # fmt: skip
# Pictures that are not decoded: in a folder they are not passed over in silence, but each refused.
_OTHERS = frozenset({".avif", ".heic", ".heif", ".j2k", ".jp2", ".jxl"})

_STDIN = "-"
_SHOWN = 3
_MOST_REDIRECTS = 10
_REMEDIES = {
    401: "the site wants a log-in: download the picture by hand, and give the file",
    403: "the site refuses programs, or this address: download the picture by hand, and give the "
    "file",
    404: "check the address",
    429: "the site has had too many requests: wait, or download the picture by hand",
}


class PictureFile(NamedTuple):
    """A picture that was not read yet.

    Attributes:
        name: as it was given, or its path in the folder that was.
        read: returns its bytes; raises InvalidRequest.
    """

    name: str
    read: Callable[[], bytes]


class _Patience:
    """The time that downloads have together; it passes while one is under way. Thread-safe.

    Args:
        timeout_s: how much there is, in seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        self._left_s, self._since_s, self._under_way = timeout_s, 0.0, 0
        self._lock = threading.Lock()

    @contextmanager
    def passing(self) -> Iterator[float]:
        """Let time pass in a `with` block, which gets the moment of `time.monotonic` it is up."""
        with self._lock:
            if not self._under_way:
                self._since_s = time.monotonic()
            self._under_way += 1
            ends_s = self._since_s + self._left_s
        try:
            yield ends_s
        finally:
            with self._lock:
                self._under_way -= 1
                if not self._under_way:
                    self._left_s -= time.monotonic() - self._since_s


# How pictures begin whose names do not say what they are.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*",
          b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")  # fmt: skip
_HEAD_BYTES = 12


def is_picture(file: Path) -> bool:
    """Say whether a file is a picture by its name, or else by how it begins."""
    if file.suffix.lower() in SUFFIXES:
        return True
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return False
    return begins_as_picture(head)


def begins_as_picture(data: bytes) -> bool:
    """Say whether bytes begin as those of a picture do."""
    return data.startswith(_MAGIC) or (data[:4], data[8:12]) == (b"RIFF", b"WEBP")


def find(given: Iterable[str], stdin: BinaryIO, *, timeout_s: float) -> list[PictureFile]:
    """Return the pictures that names stand for, in order; nothing is read yet.

    Args:
        given: paths of files; folders, searched through all levels for names that end as pictures
            do; patterns with `*`, `?`, `[...]` and `**`; http and https URLs; `-`.
        stdin: what `-` means.
        timeout_s: how long all downloads may take together, in seconds.

    Raises:
        UsageError: a folder or pattern has no picture, or `-` stands twice.
    """
    names = list(given)
    if names.count(_STDIN) > 1:
        raise UsageError(
            "- stands for one picture on standard input; give it once",
            remedy="leave out all but one -",
        )
    patience = _Patience(timeout_s)
    return [file for name in names for file in _files(name, stdin, patience)]


def _files(name: str, stdin: BinaryIO, patience: _Patience) -> Iterator[PictureFile]:
    if name == _STDIN:
        yield PictureFile("standard input", lambda: _limited(stdin, "standard input"))
    elif name.lower().startswith(("http://", "https://")):
        shown = safe_text.redacted_url(name)
        yield PictureFile(shown, lambda: _downloaded(name, patience))
    else:
        for path in _paths(name):
            yield PictureFile(_printable(path), lambda path=path: _read(path))  # type: ignore[misc]


def _printable(path: str) -> str:
    """Return a path as text, whatever bytes it was made of."""
    return os.fsencode(path).decode("utf-8", "replace")


def _paths(name: str) -> list[str]:
    try:
        if Path(name).is_dir():
            return _in_folder(name)
        is_file = Path(name).exists()
    except OSError:  # such as a name that is too long: reading it says so
        return [name]
    return [name] if is_file or not any(sign in name for sign in "*?[") else _matching(name)


def _in_folder(name: str) -> list[str]:
    found = sorted(
        str(each)
        for each in Path(name).rglob("*")
        if each.suffix.lower() in SUFFIXES | _OTHERS and each.is_file()
    )
    if not any(Path(each).suffix.lower() in SUFFIXES for each in found):
        endings = ", ".join(sorted(SUFFIXES))
        raise UsageError(f"{name} has no picture files ({endings})", remedy=_instead(name))
    return found


_ANOTHER = "give a folder with pictures, or the files themselves"


def _instead(folder: str) -> str:
    """Return which other files a folder has, as a remedy: a file by itself may have any ending."""
    endings = Counter(each.suffix.lower() for each in Path(folder).rglob("*") if each.is_file())
    held = ", ".join(f"{count} {ending or 'without ending'}"
                     for ending, count in endings.most_common(_SHOWN))  # fmt: skip
    return f"it has {held}: give the files themselves, or convert them" if held else _ANOTHER


def _matching(pattern: str) -> list[str]:
    """Return the files that a pattern means; brackets count as they stand if nothing else fits."""
    literal = pattern.replace("[", "[[]")
    found = _found(_beyond_folders(pattern)) or ("[" in pattern and _found(literal))
    if not found:
        raise UsageError(
            f"no file matches {pattern!r}",
            remedy="check the pattern, and put it in quotes; `**` matches all subfolders",
        )
    return found


def _beyond_folders(pattern: str) -> str:
    """Return a pattern in which folders that are really called so stand for themselves."""
    from glob import escape

    ends = [position for position, sign in enumerate(pattern) if sign == "/" and position]
    there = next((end for end in reversed(ends) if Path(pattern[:end]).is_dir()), 0)
    return escape(pattern[:there]) + pattern[there:]


def _found(pattern: str) -> list[str]:
    from glob import glob

    return sorted(each for each in glob(pattern, recursive=True) if not Path(each).is_dir())  # noqa: PTH207 (absolute patterns too)


def _read(path: str) -> bytes:
    name = _printable(path)
    try:
        with Path(path).open("rb") as stream:
            return _limited(stream, name)
    except OSError as error:
        raise file_error(InvalidRequest, "read", name, error) from error


def _limited(stream: BinaryIO, name: str) -> bytes:
    data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise _too_large(name)
    return data


def _too_large(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} has more than {_MAX_BYTES:,} bytes", remedy="make it smaller")


def _downloaded(url: str, patience: _Patience) -> bytes:
    shown = safe_text.redacted_url(url)
    try:
        with (
            patience.passing() as ends_s,
            downloads.opened(url, ends_s, _MAX_BYTES, most_redirects=_MOST_REDIRECTS) as found,
        ):
            return b"".join(found.chunks)
    except downloads.DownloadError as error:
        if error.kind == "size":
            raise _too_large(shown) from None
        if error.kind in {"time", "silence"}:
            remedy = "raise --timeout, which is for all downloads together"
            raise InvalidRequest(f"cannot read {shown} in time", remedy=remedy) from None
        text = f"cannot read {shown}: {error}"
        raise InvalidRequest(text, remedy=_REMEDIES.get(error.status, "")) from None


_LOOKED_AT = 4096  # bytes from the beginning
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF = {b"avif", b"avis"}
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_RESULTS = {".jpg", ".png"}
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-\s]{16,}={0,2}\s*")


# No message holds more.
_MAX_FILE_BYTES = 1 << 30


def read_file(path: Path) -> bytes:
    """Return the bytes of a file; `-` is standard input.

    Raises:
        InvalidRequest: it cannot be read, or is too large for a request.
    """
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == _STDIN else path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size  # 0 for a pipe
            data = stream.read(min(size or _MAX_FILE_BYTES, _MAX_FILE_BYTES) + 1)
    except OSError as error:
        raise file_error(InvalidRequest, "read", path, error) from error
    if len(data) > _MAX_FILE_BYTES:
        text = f"{path} has more than {_MAX_FILE_BYTES:,} bytes"
        raise InvalidRequest(text, remedy="send it in several files")
    return data


class _Kind(NamedTuple):
    """A kind of file.

    Attributes:
        what: its name, with an article.
        remedy: what to do; `{name}` is the file, `{stem}` its name without the ending, both quoted.
    """

    what: str
    remedy: str

    def advice(self, name: str) -> str:
        """Return what to do with a file of that name."""
        path = PurePath(name)
        stem = str(path.with_suffix("")) if path.name else name
        if path.suffix.lower() in _RESULTS:  # it is misnamed, and must not overwrite itself
            stem += "-1"
        return self.remedy.replace("{name}", shlex.quote(name)).replace("{stem}", shlex.quote(stem))


def kind_of(data: bytes) -> _Kind | None:
    """Return the kind of a file, None for pictures and for what is not known.

    Args:
        data: its content, or the beginning of it.
    """
    start = data[:_LOOKED_AT]
    return next((kind for looks_so, kind in _KINDS if looks_so(start)), None)


def _begins(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda start: start.startswith(marks)


def _brand(brands: set[bytes] | None) -> Callable[[bytes], bool]:
    """Return what looks for brands of an ISO media file, or for any."""
    return lambda start: start[4:8] == b"ftyp" and (brands is None or start[8:12] in brands)


def _text(start: bytes) -> str:
    """Return the beginning as small letters, empty if it is not text."""
    try:
        text = start.decode("utf-8-sig", "strict")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # else a character is cut at the end
            return ""
        text = start[: error.start].decode("utf-8-sig")
    return "" if "\0" in text else text.lstrip().lower()


def _svg(start: bytes) -> bool:
    text = _text(start)
    return text.startswith(("<svg", "<?xml", "<!--", "<!doctype svg")) and "<svg" in text


def _html(start: bytes) -> bool:
    text = _text(start)
    return text.startswith(("<!doctype html", "<html", "<head", "<body")) or (
        text.startswith(("<?xml", "<!--")) and "<html" in text
    )


def _json_lines(start: bytes) -> bool:
    lines = _text(start).splitlines()[:2]
    return len(lines) == 2 and all(re.fullmatch(r'\{\s*".*\}\s*', each) for each in lines)  # noqa: PLR2004


def _json(start: bytes) -> bool:
    return re.match(r'(\{\s*("|\}))|(\[\s*[\[{"\-0-9\]tfn])', _text(start)) is not None


def _base64(start: bytes) -> bool:
    if not _BASE64.fullmatch(start.rstrip()):
        return False
    plain = b"".join(start.split()).translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(plain[: len(plain) // 4 * 4]).startswith(_PICTURES)
    except binascii.Error:
        return False


def _table(start: bytes) -> bool:
    """Say whether the first lines have the same number of separators, and at least one."""
    lines = [line for line in _text(start).splitlines()[:4] if line.strip()][:3]
    counts = [{line.count(mark) for line in lines} for mark in ",;\t|"]
    return len(lines) > 1 and any(len(count) == 1 and count != {0} for count in counts)


JSON = _Kind("JSON", "send it with tfkit request")
_KINDS: tuple[tuple[Callable[[bytes], bool], _Kind], ...] = (
    (_brand(_HEIC), _Kind("a HEIC photograph", "heif-convert {name} {stem}.jpg, or "
                          "magick {name} {stem}.jpg")),
    (_brand(_AVIF), _Kind("an AVIF picture", "avifdec {name} {stem}.png, or "
                          "magick {name} {stem}.png")),
    (_brand(None), _Kind("a video", "ffmpeg -i {name} -vf fps=1 {stem}-%03d.png")),
    (_begins(b"\x1a\x45\xdf\xa3"), _Kind("a video", "ffmpeg -i {name} -vf fps=1 {stem}-%03d.png")),
    (_begins(b"\xff\x0a", b"\0\0\0\x0cJXL "), _Kind("a JPEG XL picture", "djxl {name} {stem}.png")),
    (_begins(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), _Kind("a JPEG 2000 picture",
                                                            "magick {name} {stem}.png")),
    (_begins(b"8BPS"), _Kind("a Photoshop file", "magick {name}[0] {stem}.png")),
    (_begins(b"\0\0\1\0"), _Kind("an icon", "magick {name} {stem}.png")),
    (_begins(b"%PDF-"), _Kind("a PDF", "pdftoppm -png -r 150 {name} {stem}")),
    (_begins(b"%!PS"), _Kind("PostScript", "gs -sDEVICE=png16m -r150 -o {stem}.png {name}")),
    (_begins(b"\x93NUMPY"), _Kind("an array of numpy's", "give it an ending of .npy and send it "
                                  "with tfkit request")),
    (_begins(b"\x89HDF"), _Kind("an HDF5 file",
                                "a Keras model is pushed: tfkit push-model {name}")),
    (_begins(b"PK\3\4"), _Kind("a ZIP archive", "unzip {name} -d {stem}, and give that folder")),
    (_begins(b"\x1f\x8b"), _Kind("packed by gzip", "gunzip {name}, or tar -xzf {name}")),
    (_begins(b"version https://git-lfs"), _Kind("a pointer of Git LFS, not the file itself",
                                                "git lfs pull --include {name}")),
    (_svg, _Kind("an SVG drawing", "rsvg-convert {name} -o {stem}.png")),
    (_html, _Kind("a web page",
                  "open the page, and save or give the address of the picture on it")),
    (_begins(b"data:image/"), _Kind("a picture within a data: URL",
                                    "cut -d, -f2 {name} | base64 -d > {stem}.picture")),
    (_json_lines, _Kind("lines of JSON", "tfkit perf --replay {name} sends recorded requests; "
                        "tfkit request takes one as .json")),
    (_json, JSON),
    (_base64, _Kind("a picture in base64", "base64 -d {name} > {stem}.picture")),
    (_table, _Kind("a table", "tfkit evaluate {name} takes rows of picture and label")),
)  # fmt: skip
