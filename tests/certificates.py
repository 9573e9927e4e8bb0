"""Certificates for tests of TLS, made for this run by openssl."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Pair:
    """Files with a certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """A private certificate authority in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not on PATH")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.own = Pair(folder / f"{name}.pem", folder / f"{name}.key")
        self._openssl(
            "req", "-x509", *_NEW_KEY, "-subj", f"/CN={name}", "-days", "2",
            "-keyout", self.own.key, "-out", self.own.cert,
        )  # fmt: skip

    def issue(self, name: str, *, alternative: str = "", days: str = "2") -> Pair:
        """Return a certificate for a common name, with an alternative name such as DNS:x."""
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        self._openssl(
            "req", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", pair.key, "-out", request
        )
        extensions.write_text(f"subjectAltName={alternative}" if alternative else "")
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.own.cert, "-CAkey", self.own.key,
            "-CAcreateserial", "-days", days, "-extfile", extensions, "-out", pair.cert,
        )  # fmt: skip
        return pair

    @staticmethod
    def _openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def ssl_config(server: Pair, *, custom_ca: Path | None = None, client_verify: bool = False) -> str:
    """Return the text of an SSLConfig."""
    lines = [f"server_key: {_quoted(server.key)}", f"server_cert: {_quoted(server.cert)}"]
    lines += [f"custom_ca: {_quoted(custom_ca)}"] if custom_ca else []
    return "\n".join([*lines, f"client_verify: {str(client_verify).lower()}", ""])


def _quoted(file: Path) -> str:
    return '"' + file.read_text().replace("\n", "\\n") + '"'
