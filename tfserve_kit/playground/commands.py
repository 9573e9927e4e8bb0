"""The request of the page as commands to copy: `tfkit`, Python and curl, each complete by itself.

No secret is written into them: a header's value that was given as it is becomes a variable, which
`notes` asks to set.
"""

import base64
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tfserve_kit.clients import Target, addresses
from tfserve_kit.clients.options import DEFAULT_TIMEOUT_S
from tfserve_kit.clients.rest import RestProtocol
from tfserve_kit.errors import TfkitError
from tfserve_kit.pictures.model import PictureOptions
from tfserve_kit.serving.access import ENVIRONMENT, FILE, Access

_BODY_FILE = "request.json"
_MOST_INLINE = 16_384  # bytes of a body that is pasted as it is; a longer one is saved first
_LINE = 60  # characters, after which each option gets a line of its own
_MOST_LITERAL = 200_000  # characters of the values in a Python program


@dataclass(frozen=True, slots=True)
class Where:
    """Where a request goes, and what the command line says besides.

    Attributes:
        url: the server's address.
        rest_url: that of its REST API, for curl; None if it is not known.
        access: how the server is reached.
        target: model, version or label, and signature.
        base_path: where the model's versions are, if that is known here.
        timeout_s: deadline, in seconds.
        top: how many classes to show.
        argv: the options about pictures, as they were given.
        labels: the file with the names of the classes and its encoding, as they were given.
    """

    url: str
    rest_url: str | None
    access: Access
    target: Target
    base_path: Path | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    top: int = 5
    argv: tuple[str, ...] = ()
    labels: tuple[str, str | None] | None = None


def for_picture(
    where: Where,
    name: str,
    asked: PictureOptions,
    inputs: Mapping[str, NDArray[Any]],
    data: bytes,
) -> dict[str, Any]:
    """Return the commands that classify a picture, for the folder that it is in.

    Args:
        where: the server.
        name: of the file.
        asked: what was said about the model.
        inputs: the value of each input, as prepared.
        data: the picture.

    Returns:
        `tfkit` and `python`; `curl` if the server's REST address is known; `curl_needs_body` if
        that wants `body` in a file; and `notes`.
    """
    file = f"./{name}" if name.startswith("-") else name
    argv = ["tfkit", "predict", file, *_server(where), *where.argv]
    return {
        "tfkit": _wrapped([*argv, "--top", str(where.top)]),
        "python": _python_for_picture(where, file, asked),
        **_curl(where, inputs, (file, data)),
        "notes": _notes(where),
    }


def for_values(where: Where, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the commands that send values; see `for_picture`."""
    text = body(where, inputs)[1].decode()
    argv = _wrapped(["tfkit", "request", _BODY_FILE, *_server(where)])
    return {
        "tfkit": f"cat > {_BODY_FILE} <<'END'\n{text}\nEND\n{argv}",
        "python": _python_for_values(where, inputs),
        **_curl(where, inputs, None),
        "notes": _notes(where),
    }


def body(where: Where, inputs: Mapping[str, NDArray[Any]]) -> tuple[str, bytes]:
    """Return path and body of the request over REST, as the client sends it.

    Raises:
        InvalidRequest: REST cannot say it.
    """
    protocol = RestProtocol(where.rest_url or "http://localhost")
    request: Any = protocol.predict(where.target, inputs, (), None).request
    return request.path, request.body


def _server(where: Where) -> Iterator[str]:
    """Yield the options of `tfkit` that lead to the server and model."""
    target = where.target
    yield from ("--url", where.url, "--model", target.model)
    if target.label:
        yield from ("--label", target.label)
    elif target.version is not None:
        yield from ("--version", str(target.version))
    if target.signature:
        yield from ("--signature", target.signature)
    if where.timeout_s != DEFAULT_TIMEOUT_S:
        yield from ("--timeout", f"{where.timeout_s:g}")
    for name, value in _tls(where).items():
        yield from (_TLS_OPTIONS[name], value)
    for name, value in where.access.headers.items():
        yield from ("--header", f"{name}={_reference(name, value)}")


_TLS_OPTIONS = {
    "ca_file": "--ca-file",
    "cert_file": "--cert",
    "key_file": "--key",
    "server_name": "--server-name",
}


def _tls(where: Where) -> dict[str, str]:
    """Return the TLS options of a client that count for the address."""
    access = where.access
    if not (access.is_firm or addresses.read(where.url).is_secure):
        return {}
    known = {
        "ca_file": access.ca_file,
        "cert_file": access.cert,
        "key_file": access.key,
        "server_name": access.server_name,
    }
    return {name: value for name, value in known.items() if value}


def _reference(name: str, value: str) -> str:
    """Return a header's value as `--header` has it, without what may be secret."""
    return value if value.startswith((ENVIRONMENT, FILE)) else ENVIRONMENT + _variable(name)


def _variable(name: str) -> str:
    return "HEADER_" + "".join(each if each.isalnum() else "_" for each in name).upper()


def _notes(where: Where) -> list[str]:
    return [
        f"Set {_variable(name)} to the value of the header {name} first."
        for name, value in where.access.headers.items()
        if not value.startswith((ENVIRONMENT, FILE))
    ]


def _wrapped(argv: Sequence[str]) -> str:
    """Return a command line, an option on each line where it is long."""
    lines: list[str] = []
    words = [shlex.quote(each) for each in argv]
    for word, given in zip(words, argv, strict=True):
        if given.startswith("--") or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    text = " ".join(lines)
    return text if len(text) <= _LINE else " \\\n  ".join(lines)


def _curl(
    where: Where, inputs: Mapping[str, NDArray[Any]], picture: tuple[str, bytes] | None
) -> dict[str, Any]:
    if where.rest_url is None:
        return {}
    try:
        path, text = body(where, inputs)
    except TfkitError as error:
        return {"curl_fault": str(error)}
    head = ["curl", "-sS", *_curl_options(where), "-H", "'Content-Type: application/json'"]
    url = shlex.quote(_curl_url(where) + path)
    if len(text) <= _MOST_INLINE:
        data = shlex.quote(text.decode())
        return {"curl": " ".join([*head, "--data-binary", data, url])}
    sent = f"{' '.join(head)} --data-binary"
    if picture and (form := _with_file(text, *picture)):
        return {"curl": f"{form} |\n  {sent} @- {url}"}
    return {"curl": f"{sent} @{_BODY_FILE} {url}", "curl_needs_body": True}


def _with_file(text: bytes, file: str, data: bytes) -> str | None:
    """Return what prints a body that holds a file once, as it is; None if it does not."""
    encoded = base64.b64encode(data)
    if text.count(encoded) != 1:
        return None
    form = text.replace(b"\\", b"\\\\").replace(b"%", b"%%").replace(encoded, b"%s").decode()
    return f"printf {shlex.quote(form)} \"$(base64 < {shlex.quote(file)} | tr -d '\\n')\""


def _curl_options(where: Where) -> Iterator[str]:
    """Yield words for a shell; the address of the REST API decides about TLS."""
    address = addresses.read(where.rest_url or "")
    if address.is_secure:
        access = where.access
        names = {"--cacert": access.ca_file, "--cert": access.cert, "--key": access.key}
        for option, value in names.items():
            if value:
                yield from (option, shlex.quote(value))
        if access.server_name and access.server_name != address.host:
            port = address.url.rpartition(":")[2] if address.url.count(":") > 1 else "443"
            yield from ("--connect-to", f"{access.server_name}:{port}:{address.host}:{port}")
    for name, value in where.access.headers.items():
        reference = _reference(name, value)
        if reference.startswith(FILE):
            shown = f"$(cat {shlex.quote(reference.removeprefix(FILE))})"
        else:
            shown = f"${{{reference.removeprefix(ENVIRONMENT)}}}"
        yield from ("-H", f'"{name}: {shown}"')


def _curl_url(where: Where) -> str:
    """Return the address of the REST API, under the name that its certificate has."""
    address = addresses.read(where.rest_url or "")
    name = where.access.server_name
    if address.is_secure and name and name != address.host:
        return address.url.replace(address.host, name, 1)
    return address.url


def _python_for_picture(where: Where, file: str, asked: PictureOptions) -> str:
    uses, said = _picture_options(where, asked)
    base_path = f", base_path=Path({str(where.base_path)!r})" if where.base_path else ""
    timeout = _timeout(where)
    return "\n".join(
        [
            *(["import os"] if "os.environ" in _connect(where) else []),
            "from pathlib import Path",
            "",
            "import tfserve_kit",
            "from tfserve_kit.clients.classifier import Classifier, find_model",
            *uses,
            "",
            f"target = {_target(where)}",
            f"asked = {said}",
            f"with {_connect(where)} as client:",
            f"    model, version = find_model(client, target, asked{base_path}{timeout})",
            f"    classifier = Classifier(client, target, model{timeout})",
            f"    picture = Path({file!r}).read_bytes()",
            f"    found = classifier.classify(picture, name={file!r}, top={where.top})",
            "for each in found.detections or found.scores:",
            "    print(each.score, each.index, each.label)",
        ]
    )


def _python_for_values(where: Where, inputs: Mapping[str, NDArray[Any]]) -> str:
    given = {alias: array.tolist() for alias, array in inputs.items()}
    text = _literal(given)
    imports = ["import os"] if "os.environ" in _connect(where) else []
    imports += ["from pathlib import Path"] if "Path(" in _connect(where) else []
    if len(text) > _MOST_LITERAL:
        return f"# {len(text):,} characters of values: use the tfkit command instead"
    return "\n".join(
        [
            *imports,
            *([""] if imports else []),
            "import tfserve_kit",
            "",
            f"inputs = {text}",
            f"with {_connect(where)} as client:",
            f"    answer = client.predict({_target(where)}, inputs{_timeout(where)})",
            "print(answer.outputs)",
        ]
    )


def _target(where: Where) -> str:
    target = where.target
    named = {"version": target.version, "label": target.label, "signature": target.signature}
    more = "".join(
        f", {name}={value!r}" for name, value in named.items() if value not in {None, ""}
    )
    return f"tfserve_kit.Target({target.model!r}{more})"


def _timeout(where: Where) -> str:
    return "" if where.timeout_s == DEFAULT_TIMEOUT_S else f", timeout_s={where.timeout_s:g}"


def _connect(where: Where) -> str:
    options = [f"{name}={value!r}" for name, value in _tls(where).items()]
    if where.access.headers:
        pairs = (
            f"{name!r}: {_value(_reference(name, value))}"
            for name, value in where.access.headers.items()
        )
        options.append(f"headers={{{', '.join(pairs)}}}")
    return f"tfserve_kit.connect({', '.join([repr(where.url), *options])})"


def _value(reference: str) -> str:
    if reference.startswith(ENVIRONMENT):
        return f"os.environ[{reference.removeprefix(ENVIRONMENT)!r}]"
    return f"Path({reference.removeprefix(FILE)!r}).read_text().rstrip()"


def _picture_options(where: Where, asked: PictureOptions) -> tuple[list[str], str]:
    """Return what must be imported, and the call that says what was asked."""
    uses = ["from tfserve_kit.pictures.model import PictureOptions"]
    how = {each.name: getattr(asked.options, each.name) for each in fields(asked.options)}
    pairs = [
        f"{name}={value!r}" for name, value in how.items() if value is not None and name != "labels"
    ]
    if where.labels:
        uses.append("from tfserve_kit.pictures import labels")
        file, encoding = where.labels
        pairs.append(f"labels=labels.read(Path({file!r}), {encoding!r})")
    if pairs:
        uses.append("from tfserve_kit.pictures.preprocessing import Preprocessing")
    others = [f"options=Preprocessing({', '.join(pairs)})"] if pairs else []
    others += [
        f"{name}={getattr(asked, name)!r}"
        for name in ("output", "softmax", "picture_input", "companions")
        if getattr(asked, name)
    ]
    return sorted(uses), f"PictureOptions({', '.join(others)})"


def _literal(value: Any) -> str:
    """Return a value as Python source; numbers that have none by name are made from text."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_literal(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    return repr(value)
