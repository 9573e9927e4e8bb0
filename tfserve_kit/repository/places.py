"""Names of places: folders, files and URLs, told apart."""

import re
from pathlib import Path
from urllib.parse import unquote

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE | re.ASCII)


def scheme(place: str) -> str:
    """Return the scheme of a URL in lower case; the empty text for a path, `file://` included."""
    match = _SCHEME.match(place)
    found = match[1].lower() if match else ""
    return "" if found in {"file", "local"} else found


def local(place: str) -> Path:
    """Return the path that a path or a `file://` URL stands for."""
    match = _SCHEME.match(place)
    return Path(unquote(place[match.end() :]) if match else place)
