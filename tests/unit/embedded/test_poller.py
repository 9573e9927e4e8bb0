"""Looking at base paths: all of them once a round, beside one that hangs."""

import threading
from queue import SimpleQueue

import pytest

from tfserve_kit.embedded.manager import Poller

PATIENCE_S = 10.0


class Disk:
    """Notes who is looked at; `slow` hangs until it is let go."""

    def __init__(self):
        self.looked, self.go = SimpleQueue(), threading.Event()

    def look(self, name, config):
        self.looked.put((name, config))
        if name == "slow":
            assert self.go.wait(PATIENCE_S)

    def next(self):
        return self.looked.get(timeout=PATIENCE_S)


@pytest.fixture
def disk():
    disk = Disk()
    yield disk
    disk.go.set()


def test_model_that_hangs_is_not_looked_at_again_and_others_are(disk):
    poller, configs = Poller(disk.look), {"slow": object(), "quick": object()}
    poller.ask(configs)
    assert disk.next() == ("slow", configs["slow"])
    for _ in range(3):
        poller.ask(configs)
        assert disk.next() == ("quick", configs["quick"])
    disk.go.set()
    poller.ask({"last": 1})
    assert disk.next() == ("last", 1)


def test_model_that_is_replaced_while_it_is_looked_at_is_looked_at_once_more(disk):
    poller = Poller(disk.look)
    poller.ask({"slow": "old"})
    assert disk.next() == ("slow", "old")
    poller.ask({"slow": "new"})  # the only round: base paths need not be polled
    disk.go.set()
    assert disk.next() == ("slow", "new")


def test_model_that_is_removed_while_it_is_looked_at_is_not_looked_at_again(disk):
    poller = Poller(disk.look)
    poller.ask({"slow": "old"})
    assert disk.next() == ("slow", "old")
    poller.ask({"slow": "new"})
    poller.ask({"other": 1})
    assert disk.next() == ("other", 1)
    disk.go.set()
    poller.ask({"end": 1})
    assert disk.next() == ("end", 1)
