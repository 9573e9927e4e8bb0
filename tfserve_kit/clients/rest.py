"""The REST client: TensorFlow Serving's JSON API over HTTP."""

from tfserve_kit.clients.http_connections import HttpTransport
from tfserve_kit.clients.options import Options
from tfserve_kit.clients.rest_messages import RestWire
from tfserve_kit.clients.sync import SyncClient


class RestClient(SyncClient):
    """Talks REST to one server. Thread-safe.

    Args:
        url: `http://host:port` or `https://host:port`, with a path if a proxy wants one.
        options: how the client behaves.
    """

    def __init__(self, url: str, options: Options | None = None) -> None:
        options = options or Options()
        url = url.rstrip("/")
        super().__init__(RestWire(url), HttpTransport(url, options), options)
