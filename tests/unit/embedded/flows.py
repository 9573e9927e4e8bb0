"""Between plain functions and flows: what is made up in tests need not wait."""

from functools import wraps

from tfserve_kit.embedded.batching import completed


def flowing(function):
    """Return a function that returns at once as one that is awaited."""

    async def flow(*arguments, **options):
        return function(*arguments, **options)

    return flow


class Blocking:
    """The methods of handlers, each keeping the thread until it has its result."""

    def __init__(self, handlers):
        self._handlers = handlers

    def __getattr__(self, name):
        method = getattr(self._handlers, name)

        @wraps(method)
        def ask(*arguments, **options):
            found = method(*arguments, **options)
            return completed(found) if hasattr(found, "send") else found

        return ask
