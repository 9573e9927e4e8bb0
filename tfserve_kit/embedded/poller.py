"""Looks at the models' base paths, in threads of its own: a file system may take its time."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

_log = logging.getLogger(__name__)

# So many base paths may hang before the others are not looked at any more.
_MOST_THREADS = 16


class Poller:
    """Has every model looked at once a round. Thread-safe.

    A model whose configuration is replaced while it is looked at is looked at once more afterwards.
    Each round adds a thread if those before are still busy; so a base path that hangs costs one
    thread, and the models beside it are looked at by the next.

    Args:
        look: told a model's name and its ModelConfig message.
    """

    def __init__(self, look: Callable[[str, Any], object]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._due: OrderedDict[str, Any] = OrderedDict()
        self._busy: dict[str, Any] = {}
        self._threads = 0

    def ask(self, configs: Mapping[str, Any]) -> None:
        """Begin a round; returns at once.

        Args:
            configs: ModelConfig message by name; models being looked at are left out.
        """
        with self._lock:
            self._due = OrderedDict(
                (name, config)
                for name, config in configs.items()
                if self._busy.get(name) is not config
            )
            if self._due.keys() <= self._busy.keys() or self._threads >= _MOST_THREADS:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, name="poll", daemon=True).start()
        except RuntimeError:  # the system has no more; the next round tries again
            with self._lock:
                self._threads -= 1
            raise

    def stop(self) -> None:
        """Look at no further model."""
        self.ask({})

    def _work(self) -> None:
        while found := self._take():
            name, config = found
            try:
                self._look(name, config)
            except Exception:  # noqa: BLE001 (the other models want to be looked at)
                _log.exception("looking at the base path of %s failed", name)
            with self._lock:
                del self._busy[name]

    def _take(self) -> tuple[str, Any] | None:
        with self._lock:
            name = next((name for name in self._due if name not in self._busy), None)
            if name is None:
                self._threads -= 1
                return None
            config = self._busy[name] = self._due.pop(name)
            return name, config
