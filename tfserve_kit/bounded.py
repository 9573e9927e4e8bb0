"""Files that others wrote, read whole only up to a bound."""

import stat
from pathlib import Path


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
