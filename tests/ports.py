"""Ports for servers that a test starts later."""

import random
import socket

# Below those that the system gives to clients: one of them may have the port by then.
_FIRST, _LAST = 10_000, 19_999


def free_port(host="127.0.0.1"):
    """Return a TCP port of this machine on which nobody listens, another one each time."""
    while True:
        port = random.SystemRandom().randint(_FIRST, _LAST)
        try:
            socket.create_server((host, port)).close()
        except OSError:
            continue
        return port
