"""Other load generators, and servers for them and ours: compiled here, or configured.

The gRPC servers are C++ on Debian's libgrpc++; the REST servers are nginx, which answers from its
configuration, and one in C++ that takes its time for each request, which nginx cannot.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.drive import PREDICT
from bench.harness import Unavailable
from bench.processes import free_port
from tfserve_kit.perf.load import Payload

MESSAGE = b"\x0a\x06answer"
GRPC = Payload(PREDICT, (), MESSAGE)
REST = Payload("/v1/models/m:predict", ((b"content-type", b"application/json"),), b"{}")

_HERE = Path(__file__).parent
_PATIENCE_S = 10
_NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 127.0.0.1:{port};
    location / {{ default_type application/json; return 200 '{{"predictions": [2.5]}}'; }}
    location = /status {{ stub_status; }}
  }}
}}
"""


def tool(name: str, package: str) -> str:
    """Return the path of a program.

    Raises:
        Unavailable: there is none.
    """
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        raise Unavailable(f"{name} is not installed ({package})")
    return found


@dataclass(frozen=True, slots=True)
class Server:
    """A server in C++ that runs; see `answering_server.cc` and `waiting_server.cc`."""

    process: "subprocess.Popen[str]"
    port: int

    def answered(self) -> int:
        """Return how many requests it has answered."""
        _write_line(self.process)
        return int(_line(self.process))


@contextmanager
def grpc_server(scratch: Path, each_us: int = 0) -> Iterator[Server]:
    """Compile and run a gRPC server that takes so many microseconds for each call."""
    with _serving(
        compiled(_HERE / "answering_server.cc", scratch, *grpc_library()), each_us
    ) as server:
        yield server


@contextmanager
def waiting_server(scratch: Path, each_us: int) -> Iterator[Server]:
    """Compile and run a REST server that takes so many microseconds for each request."""
    with _serving(compiled(_HERE / "waiting_server.cc", scratch, "-pthread"), each_us) as server:
        yield server


def grpc_library() -> list[str]:
    """Return what the compiler has to be told of gRPC's C++ library.

    Raises:
        Unavailable: it is not installed.
    """
    config = tool("pkg-config", "Debian: pkg-config")
    asked = subprocess.run(
        [config, "--cflags", "--libs", "grpc++"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise Unavailable("the C++ library of gRPC is not installed (Debian: libgrpc++-dev)")
    return asked.stdout.split()


def compiled(source: Path, scratch: Path, *flags: str) -> Path:
    """Compile a program in C++ into a folder; return it.

    Raises:
        Unavailable: there is no compiler.
    """
    compiler, program = tool("g++", "Debian: g++"), scratch / source.stem
    subprocess.run([compiler, "-O2", "-std=c++17", source, "-o", program, *flags], check=True)
    return program


@contextmanager
def _serving(program: Path, each_us: int) -> Iterator[Server]:
    with _running(program, str(each_us)) as process:
        yield Server(process, int(_line(process)))


@contextmanager
def nginx(scratch: Path) -> Iterator[int]:
    """Run nginx, which answers at once; yield its port."""
    program, port = tool("nginx", "Debian: nginx-light"), free_port()
    file = scratch / "nginx.conf"
    file.write_text(_NGINX.format(folder=scratch, port=port))
    with _running(program, "-p", scratch, "-c", file) as process:
        end_s = time.monotonic() + _PATIENCE_S
        while not (scratch / "pid").exists():
            if process.poll() is not None or time.monotonic() > end_s:
                raise Unavailable(f"nginx does not start: {(scratch / 'errors').read_text()}")
            time.sleep(0.01)
        try:
            yield port
        finally:
            process.send_signal(signal.SIGTERM)  # takes its worker along
            process.wait()


@contextmanager
def _running(*argv: str | Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _line(process: "subprocess.Popen[str]") -> str:
    return process.stdout.readline() if process.stdout else ""


def _write_line(process: "subprocess.Popen[str]") -> None:
    if process.stdin:
        process.stdin.write("\n")
        process.stdin.flush()


def h2load(
    scratch: Path, port: int, in_flight: int, *options: str, message: bytes = MESSAGE
) -> str:
    """Send gRPC requests over one connection; return what h2load printed."""
    body = scratch / "message"
    body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    argv = [
        tool("h2load", "Debian: nghttp2-client"), "-c", "1", "-t", "1", "-m", str(in_flight),
        *options, "-H", "content-type: application/grpc", "-H", "te: trailers", "-d", str(body),
        f"http://127.0.0.1:{port}{PREDICT}",
    ]  # fmt: skip
    return _printed(argv)


def h2load_posts(scratch: Path, url: str, connections: int, calls: int, content: bytes) -> str:
    """Post JSON over connections of HTTP/1.1; return what h2load printed."""
    body = scratch / "body"
    body.write_bytes(content)
    argv = [
        tool("h2load", "Debian: nghttp2-client"), "--h1", "-c", str(connections), "-t", "1",
        "-n", str(calls), "-H", "content-type: application/json", "-d", str(body), url,
    ]  # fmt: skip
    return _printed(argv)


def wrk(scratch: Path, port: int, in_flight: int, seconds: float, body: str = "{}") -> str:
    """Send REST requests from one thread; return what wrk printed."""
    script = scratch / "post.lua"
    script.write_text(
        f"wrk.method = \"POST\"\nwrk.body = '{body}'\n"
        'wrk.headers["Content-Type"] = "application/json"\n'
    )  # fmt: skip
    argv = [
        tool("wrk", "Debian: wrk"), "-t1", f"-c{in_flight}", f"-d{seconds:g}s", "-s", str(script),
        f"http://127.0.0.1:{port}{REST.path}",
    ]  # fmt: skip
    return _printed(argv)


def autocannon(
    port: int, in_flight: int, seconds: float, body: str = "{}", program: str = "autocannon"
) -> dict[str, Any]:
    """Send REST requests; return what autocannon says of them."""
    argv = [
        tool(program, "npm install --global autocannon"), "--json", "-c", str(in_flight),
        "-d", f"{seconds:g}", "-m", "POST", "-H", "content-type=application/json", "-b", body,
        f"http://127.0.0.1:{port}{REST.path}",
    ]  # fmt: skip
    said: dict[str, Any] = json.loads(_printed(argv))
    return said


def found(pattern: str, text: str) -> str:
    """Return what a generator printed where a pattern's group is."""
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(text)
    return match[1]


def _printed(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
