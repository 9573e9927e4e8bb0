"""Names of places: folders, files and URLs, as they may be shown and remembered."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

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


def redacted(place: str) -> str:
    """Return a place without what may be secret in a URL: user, password, query and fragment."""
    if not scheme(place):
        return place
    try:
        parts = urlsplit(place)
    except ValueError:
        return f"{scheme(place)}://..."
    user, at, host = parts.netloc.rpartition("@")
    del user
    shown = f"{parts.scheme}://{'***@' if at else ''}{host}{parts.path}"
    return shown + ("?***" if parts.query else "")
