"""A Docker daemon that can go away: a socket in front of the real one, cut off at will."""

import contextlib
import socket
import socketserver
import threading

DAEMON = "/var/run/docker.sock"


class DaemonProxy:
    """Hands all on to the daemon until a request holds a text; from then on nobody answers.

    Args:
        file: path of the socket.
        cut_at: the text, such as `/start`.
    """

    def __init__(self, file, cut_at):
        self.url = f"unix://{file}"
        self._file, self._cut_at, self._open = file, cut_at.encode(), []
        self._server = socketserver.ThreadingUnixStreamServer(str(file), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(proxy):  # noqa: N805 (the class inside has its own self)
        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with socket.socket(socket.AF_UNIX) as daemon:
                    daemon.connect(DAEMON)
                    proxy._open += [self.request, daemon]
                    back = threading.Thread(target=pump, args=(daemon, self.request))
                    back.start()
                    pump(self.request, daemon, proxy._is_good)
                    back.join()

        return Handler

    def _is_good(self, data):
        if self._cut_at not in data:
            return True
        self._file.unlink(missing_ok=True)
        for each in self._open:
            hang_up(each)
        return False


def pump(source, sink, is_good=lambda data: True):
    """Copy until one side hangs up or `is_good` says no; then hang up on the other."""
    with contextlib.suppress(OSError):
        while (data := source.recv(65536)) and is_good(data):
            sink.sendall(data)
    hang_up(sink)


def hang_up(connection):
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
