"""What the server writes about itself, with a clock under control."""

import io
import logging

import pytest

from tfserve_kit.embedded import logs
from tfserve_kit.embedded.logs import BoundedHandler


class World:
    """A logger with a bounded handler."""

    def __init__(self):
        self.stream, self.now_s = io.StringIO(), 0.0
        self.handler = BoundedHandler(self.stream, lambda: self.now_s)
        self.log = logging.Logger("it")  # noqa: LOG001 (of this test alone)
        self.log.addHandler(self.handler)

    def lines(self):
        return self.stream.getvalue().splitlines()

    def size(self):
        return len(self.stream.getvalue())


@pytest.fixture
def world():
    return World()


def test_line_says_when_what_and_who(world):
    world.log.warning("%s failed", "a load")
    (line,) = world.lines()
    assert line.endswith(": W it] a load failed")
    assert line[:2] == "20"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nI 2026 it] forged", r"a\nI 2026 it] forged"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud800", r"\ud800"),
        ("tab\tnul\0", r"tab\tnul\x00"),
    ],
)
def test_nothing_in_a_message_acts_and_it_stays_on_its_line(world, text, shown):
    world.log.error("model %s", text)
    assert world.lines()[0].endswith(f"E it] model {shown}")
    assert len(world.lines()) == 1


def test_long_message_is_cut_and_says_so(world):
    world.log.error("%s", "\x1b" * 1_000_000)
    assert world.size() < 2 * logs.LONGEST_LINE
    assert "more characters)" in world.lines()[0]


def raised(error):
    """Return an error with a traceback."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_traceback_keeps_its_lines_and_each_is_harmless(world):
    world.log.error("it broke", exc_info=raised(ValueError("\x1b[31m" + "x" * 100_000)))
    lines = world.lines()
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1].startswith(r"ValueError: \x1b[31mxxx")
    assert len(lines[-1]) < 2 * logs.LONGEST_LINE


def test_endless_traceback_is_shown_by_its_ends(world):
    error = None
    for number in range(200):
        error, cause = ValueError(number), error
        error.__cause__ = cause
    world.log.error("it broke", exc_info=error)
    lines = world.lines()
    assert len(lines) < 110
    assert "..." in lines


def test_what_repeats_is_counted(world):
    for _ in range(1206):
        world.log.error("no such file")
    assert len(world.lines()) == 3
    world.now_s += logs.WINDOW_S
    world.log.error("another")
    assert world.lines()[3] == "it] no such file (repeated 1,203 times)"
    assert world.lines()[4].endswith("another")
    world.log.error("no such file")
    assert world.lines()[5].endswith("no such file")


def test_what_was_left_out_is_told_at_the_end_as_well(world):
    for _ in range(5):
        world.log.error("no such file")
    world.handler.close()
    assert world.lines()[-1] == "it] no such file (repeated 2 times)"


def test_one_place_cannot_fill_the_log_with_ever_new_texts(world):
    for number in range(10_000):
        world.log.error("bad request %d", number)
    world.log.error("from elsewhere")
    assert len(world.lines()) == logs.MOST_LINES_OF_A_PLACE + 1
    assert world.lines()[-1].endswith("from elsewhere")
    world.now_s += logs.WINDOW_S
    world.log.error("later")
    assert "(9,700 further lines were left out)" in world.lines()


def test_nobody_can_write_more_than_so_much_in_a_minute(world):
    for minute in range(3):
        for number in range(1000):
            world.log.error("%s", f"{number}" + "x" * 5000)
        assert world.size() < (minute + 1) * (logs.MOST_CHARACTERS + 10_000)
        world.now_s += logs.WINDOW_S


def test_count_of_repeats_does_not_grow_with_made_up_texts(world):
    for number in range(100_000):
        world.log.error("bad request %d", number)
    assert len(world.handler._texts) <= logs.MOST_LINES_OF_A_PLACE
