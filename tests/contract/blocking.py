"""The asyncio client behind the face of the blocking one, so that both stand the same tests."""

import asyncio
import threading

from tfserve_kit import connect_async


class Blocking:
    """Runs each method of an `AsyncClient` in an event loop of its own, from any thread."""

    def __init__(self, url, **options):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            self._client = connect_async(url, **options)
        except BaseException:
            self._end()
            raise
        self.url = self._client.url

    def __getattr__(self, name):
        method = getattr(self._client, name)

        def call(*arguments, **named):
            task = asyncio.run_coroutine_threadsafe(method(*arguments, **named), self._loop)
            return task.result()

        return call

    def __enter__(self):
        return self

    def __exit__(self, *error):
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._end()

    def _end(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
