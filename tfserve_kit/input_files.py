"""Files that others wrote: read whole only up to a bound, and as text in a known encoding."""

import codecs
import stat
from collections.abc import Iterator
from pathlib import Path

from tfserve_kit.errors import UsageError, file_error


def read_bytes(file: Path, most_bytes: int) -> bytes:
    """Return what a file holds.

    Args:
        file: what is read.
        most_bytes: the most that it may hold.

    Raises:
        ValueError: it holds more, or is a device or a pipe, which may never end.
        OSError: it cannot be read.
    """
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is not a regular file")
    if found.st_size > most_bytes:
        raise ValueError(f"holds {found.st_size:,} bytes, more than the {most_bytes:,} allowed")
    return file.read_bytes()


def read_text(file: Path, most_bytes: int) -> str:
    """Return the text of a UTF-8 file, with a mark or without; otherwise as `read_bytes`."""
    return read_bytes(file, most_bytes).decode("utf-8-sig")


# By their first bytes; those of UTF-32 begin as those of UTF-16 do.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD_BYTES = 4096
_SHOWN = 40
_MOST_LINE = 1 << 26  # a picture of ten megapixels, in decimal


def _encoding_of(head: bytes, what: str, given: str | None = None) -> str:
    """Return the encoding of a text by its first bytes: as they are marked, UTF-8 otherwise.

    Args:
        head: the first bytes.
        what: what errors call the text.
        given: what the user says; wins over what is found.

    Raises:
        UsageError: it is not text, or the encoding that was given is not known.
    """
    if given is not None:
        try:
            return codecs.lookup(given).name
        except LookupError:
            text = f"{given!r} is not the name of an encoding"
            raise UsageError(text, remedy="--text-encoding latin-1, for example") from None
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head[:_HEAD_BYTES]:
        raise _no_text(head, what)
    return "utf-8"


def _no_text(head: bytes, what: str) -> UsageError:
    for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros = head[start:_HEAD_BYTES:2]
        if zeros.count(0) > len(zeros) / 2:
            return UsageError(
                f"cannot read {what}: it seems to be UTF-16 without the mark that says so",
                remedy=f"give --text-encoding {encoding}, or save it as UTF-8",
            )
    return UsageError(
        f"cannot read {what}: it is not text: it starts with {head[:16]!r}",
        remedy="give a text file, in UTF-8 or with its --text-encoding",
    )


def decode(data: bytes, what: str, given: str | None = None) -> str:
    """Return the text that bytes stand for, without its mark.

    Args:
        data: all of it.
        what: what errors call it.
        given: the encoding that the user says it is in; None to go by what is found.

    Raises:
        UsageError: it is in another encoding; the message shows the first line that is.
    """
    encoding = _encoding_of(data, what, given)
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _undecodable(error, what, encoding) from error


def _undecodable(error: UnicodeDecodeError, what: str, encoding: str) -> UsageError:
    """Return the error for bytes that are not of an encoding; one that shows where."""
    data, at = error.object, error.start
    if encoding not in {"utf-8", "utf-8-sig"}:
        text = f"it is not {encoding}: {error.reason} at byte {at}"
        return UsageError(f"cannot read {what}: {text}", remedy="choose another --text-encoding")
    start = max(data.rfind(b"\n", 0, at), data.rfind(b"\r", 0, at)) + 1
    line = data[start:].splitlines()[0][:_SHOWN].decode("latin-1")
    return UsageError(
        f"cannot read {what}: it is not UTF-8; as Latin-1 this line would be {line!r}",
        remedy="give --text-encoding latin-1 (or the file's real encoding), or save it as UTF-8",
    )


def lines(file: Path, given: str | None = None) -> Iterator[str]:
    """Yield the lines of a file as they are needed, with their ends.

    Raises:
        UsageError: it cannot be read, or is in another encoding.
    """
    encoding = "utf-8"
    try:
        with file.open("rb") as raw:
            encoding = _encoding_of(raw.read(_HEAD_BYTES), str(file), given)
        with file.open(newline="", encoding=encoding) as stream:
            for number, line in enumerate(iter(lambda: stream.readline(_MOST_LINE + 1), ""), 1):
                if len(line) > _MOST_LINE:
                    text = f"cannot read {file}: line {number} has over {_MOST_LINE:,} characters"
                    raise UsageError(text, remedy="write an example on each line")
                yield line
    except UnicodeDecodeError as error:
        raise _undecodable(error, str(file), encoding) from error
    except OSError as error:
        raise file_error(UsageError, "read", file, error) from error
