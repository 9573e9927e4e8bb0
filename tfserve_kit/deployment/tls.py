"""What an SSLConfig file of a server means for those who talk to it.

A server with TLS and its clients shake hands here in memory, with the very files that both will
have. So it shows before anything is started that a certificate has expired, that a key belongs to
another, or that the server would turn its clients away.
"""

import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfserve_kit import protos
from tfserve_kit.deployment.spec import ClientSection, Spec
from tfserve_kit.errors import Problem, SpecError

FLAG = "ssl_config_file"
_PLACE = f"server.flags.{FLAG}"
_MOST_TURNS = 10  # of a handshake, which takes three
# What keys are strong enough is for the server to say, not for us.
_CIPHERS = "DEFAULT:@SECLEVEL=0"
_WILDCARD_STANDS_FOR = "tfkit"


def of_deployment(spec: Spec) -> tuple[str, str] | None:
    """Return how the server of a deployment speaks TLS with tfkit; None if it does not.

    Returns:
        The PEM text of its certificate, with the chain that the file gives, and a name that the
        certificate has.

    Raises:
        SpecError: the file cannot be used, or its server and tfkit would not come together.
    """
    file = str(spec.server.flags.get(FLAG, ""))
    if not file:
        return None
    if spec.client.ca_file and spec.client.server_name and not Path(file).is_file():
        return None  # it is there where the server runs, and all that matters here is known
    config = _read(Path(file))
    _require(config, spec.client)
    peer = _shaken(config, spec.client)
    name = spec.client.server_name or _name(peer)
    if not name:
        raise _problem(
            "has a certificate without a name",
            "make one with -addext subjectAltName=DNS:NAME, or set server_name in [client]",
        )
    return config.server_cert, name


def _read(file: Path) -> Any:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise _problem(f"names {file}, which cannot be read: {reason}", "check the path") from None
    try:
        return protos.from_text("SSLConfig", text)
    except protos.TextFormatError:  # what it says may be a part of the key
        raise _problem(
            f"names {file}, which is not an SSLConfig", "docs/tls.md shows how to make one"
        ) from None


def _require(config: Any, client: ClientSection) -> None:
    for field in ("server_key", "server_cert"):
        if not getattr(config, field).strip():
            raise _problem(f"names a file without {field}", "docs/tls.md shows how to make one")
    if config.client_verify and not client.cert:
        raise _problem(
            "names a file with client_verify: true, and tfkit has no certificate to show",
            "set cert and key in [client], or give --cert and --key",
        )


def _shaken(config: Any, client: ClientSection) -> Mapping[str, Any]:
    """Let server and client shake hands, and return what the server's certificate says."""
    mine = _server_side(config)
    theirs = _client_side(config, client)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = mine.wrap_bio(to_server, to_client, server_side=True)
    caller = theirs.wrap_bio(to_client, to_server, server_hostname=client.server_name)
    for _ in range(_MOST_TURNS):
        for side, who in ((caller, "tfkit"), (server, "the server")):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except (ssl.SSLError, ssl.CertificateError) as error:
                raise _unshaken(error, who) from None
    return caller.getpeercert() or {}


def _server_side(config: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(_CIPHERS)
    with tempfile.TemporaryDirectory(prefix="tfkit-") as place:  # for this user alone
        cert, key = Path(place) / "cert.pem", Path(place) / "key.pem"
        cert.write_text(config.server_cert, "utf-8")
        key.write_text(config.server_key, "utf-8")
        try:
            context.load_cert_chain(cert, key, password="")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or "no PEM text"
            raise _problem(
                f"names a file whose server_cert and server_key cannot be used ({reason})",
                "give the certificate, and the key it was made with, without a passphrase",
            ) from None
    if config.client_verify:
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if config.custom_ca.strip():
            _trust(context, "custom_ca", cadata=config.custom_ca)
        else:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    return context


def _client_side(config: Any, client: ClientSection) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers(_CIPHERS)
    context.check_hostname = client.server_name is not None
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if client.ca_file:
        _trust(context, "ca_file", cafile=client.ca_file)
    else:
        _trust(context, "server_cert", cadata=config.server_cert)
    if client.cert and client.key:
        try:
            context.load_cert_chain(client.cert, client.key, password="")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", "") or "no PEM"
            text = f"cannot be used with {client.key}: {client.cert} ({reason})"
            raise SpecError("TLS", [Problem("client.cert", text, "give PEM files")]) from None
    return context


def _trust(context: ssl.SSLContext, what: str, **where: str) -> None:
    try:
        context.load_verify_locations(**where)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", "") or "no PEM text"
        place = "client.ca_file" if what == "ca_file" else _PLACE
        text = f"has a {what} that cannot be used: {where.get('cafile', '')} ({reason})"
        raise SpecError("TLS", [Problem(place, text, "give certificates as PEM text")]) from None


def _unshaken(error: ssl.SSLError | ssl.CertificateError, who: str) -> SpecError:
    reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
    remedy = "docs/tls.md shows which files belong together"
    if "expired" in reason:
        remedy = "make a new certificate"
    elif who == "the server":
        remedy = "cert in [client] must be signed by what custom_ca holds"
    elif "ostname" in reason or "IP address" in reason:
        remedy = "set server_name in [client] to a name that the certificate has"
    return _problem(f"makes a handshake that {who} rejects: {reason}", remedy)


def _name(peer: Mapping[str, Any]) -> str:
    """Return a name that a certificate has: of a host, of an address, or its common name."""
    others = peer.get("subjectAltName", ())
    for kind in ("DNS", "IP Address"):
        for found, value in others:
            if found == kind:
                return str(value).replace("*", _WILDCARD_STANDS_FOR)
    subject = dict(pair for part in peer.get("subject", ()) for pair in part)
    return "" if others else str(subject.get("commonName", "")).replace("*", _WILDCARD_STANDS_FOR)


def _problem(text: str, remedy: str) -> SpecError:
    return SpecError("TLS", [Problem(_PLACE, text, remedy)])
