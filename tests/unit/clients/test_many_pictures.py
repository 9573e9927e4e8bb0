"""Many pictures: in order, in batches, ahead of the server, and none loses another."""

import threading

import numpy as np
import pytest

from tfserve_kit.clients import classifier as many_pictures
from tfserve_kit.clients.classifier import (
    Classified,
    PreparedPicture,
    choose_batch_rows,
    classify_all,
)
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerFault,
    ServerOverloaded,
    ServerUnreachable,
    UsageError,
)
from tfserve_kit.pictures.files import PictureFile


class FakeClassifier:
    """Takes numbers for pictures; refuses some when they are prepared, some when they are sent.

    Args:
        fixed_rows: see `Classifier`.
        unreadable: numbers that are no pictures.
        failing: errors by the number that brings them about, in whatever batch.
    """

    def __init__(self, *, fixed_rows=None, unreadable=(), failing=None):
        self.fixed_rows = fixed_rows
        self._unreadable, self._failing = unreadable, failing or {}
        self.sent = []
        self.prepared = []

    def prepare(self, data, *, name, index=0):
        number = int(data)
        self.prepared.append(number)
        if number in self._unreadable:
            raise InvalidRequest(f"{name} is no picture")
        return PreparedPicture(np.array(number), 0.5)

    def score(self, pictures, *, top):
        numbers = [int(picture.row) for picture in pictures]
        self.sent.append(numbers)
        for number in numbers:
            if number in self._failing:
                raise self._failing[number]
        return [Classified((number, top), 1, 0.5, 0.25, len(numbers)) for number in numbers]


def files(count, read=lambda number: str(number).encode()):
    return [PictureFile(f"{n}.png", lambda n=n: read(n)) for n in range(count)]


def run(classifier, count, batch_rows):
    return list(classify_all(classifier, files(count), batch_rows=batch_rows, top=3))


def results(outcomes):
    return {
        name: found.scores if isinstance(found, Classified) else found for name, found in outcomes
    }


@pytest.mark.parametrize(
    ("count", "rows", "sent"),
    [
        (0, 4, []),
        (1, 4, [[0]]),
        (3, 1, [[0], [1], [2]]),
        (4, 4, [[0, 1, 2, 3]]),
        (9, 4, [[0, 1, 2, 3], [4, 5, 6, 7], [8]]),
    ],
)
def test_pictures_are_sent_in_batches_and_come_back_in_order(count, rows, sent):
    classifier = FakeClassifier()
    outcomes = run(classifier, count, rows)
    assert classifier.sent == sent
    assert [name for name, _ in outcomes] == [f"{n}.png" for n in range(count)]
    assert [found.scores for _, found in outcomes] == [(n, 3) for n in range(count)]


def test_picture_that_is_none_leaves_its_place_to_no_other():
    classifier = FakeClassifier(unreadable={1, 4, 5})
    outcomes = run(classifier, 6, 2)
    assert classifier.sent == [[0], [2, 3]]
    found = results(outcomes)
    assert [found[f"{n}.png"] for n in (0, 2, 3)] == [(0, 3), (2, 3), (3, 3)]
    assert [str(found[f"{n}.png"]) for n in (1, 4, 5)] == [
        f"{n}.png is no picture" for n in (1, 4, 5)
    ]


def test_file_that_cannot_be_read_is_an_outcome():
    def read(number):
        if number == 1:
            raise InvalidRequest("cannot read 1.png")
        return str(number).encode()

    pictures = files(3, read)
    outcomes = list(classify_all(FakeClassifier(), pictures, batch_rows=2, top=3))
    assert [isinstance(found, InvalidRequest) for _, found in outcomes] == [False, True, False]


@pytest.mark.parametrize("kind", [InvalidRequest, ServerFault, ServerOverloaded])
def test_refused_batch_is_tried_picture_by_picture(kind):
    error = kind("too red")
    classifier = FakeClassifier(failing={2: error})
    found = results(run(classifier, 6, 3))
    assert classifier.sent == [[0, 1, 2], [0], [1], [2], [3, 4, 5]]
    assert found["2.png"] is error
    assert [found[f"{n}.png"] for n in (0, 1, 3, 4, 5)] == [(n, 3) for n in (0, 1, 3, 4, 5)]


@pytest.mark.parametrize("kind", [DeadlineExceeded, ModelNotFound, ServerUnreachable, UsageError])
def test_error_that_the_others_would_meet_too_ends_it_after_those_before(kind):
    classifier = FakeClassifier(failing={3: kind("gone")})
    outcomes = classify_all(classifier, files(6), batch_rows=2, top=3)
    assert [next(outcomes)[0], next(outcomes)[0]] == ["0.png", "1.png"]
    with pytest.raises(kind):
        next(outcomes)
    assert classifier.sent == [[0, 1], [2, 3]]


def test_no_more_is_read_ahead_than_said():
    read, lock = [], threading.Lock()

    def note(number):
        with lock:
            read.append(number)
        return str(number).encode()

    outcomes = classify_all(FakeClassifier(), files(500, note), batch_rows=8, top=3)
    for done in range(100):
        next(outcomes)
        assert len(read) <= done + 1 + 8 + 2 * 8
    outcomes.close()


def test_next_batch_is_prepared_while_the_server_answers():
    ahead = threading.Event()

    class Slow(FakeClassifier):
        def prepare(self, data, *, name, index=0):
            if int(data) == 3:
                ahead.set()
            return super().prepare(data, name=name)

        def score(self, pictures, *, top):
            assert ahead.wait(10), "nobody prepares what comes next"
            return super().score(pictures, top=top)

    assert len(run(Slow(), 4, 2)) == 4


def test_leaving_early_leaves_the_rest_unread():
    classifier = FakeClassifier()
    outcomes = classify_all(classifier, files(1000), batch_rows=4, top=3)
    next(outcomes)
    outcomes.close()
    assert len(classifier.prepared) < 50


def test_single_picture_needs_no_thread(monkeypatch):
    monkeypatch.setattr(many_pictures.os, "cpu_count", lambda: pytest.fail("a pool was made"))
    assert len(run(FakeClassifier(), 1, 16)) == 1


@pytest.mark.parametrize(
    ("fixed", "pictures", "wanted", "rows"),
    [
        (None, 1, None, 1),
        (None, 5, None, 5),
        (None, 100, None, 16),
        (None, 100, 32, 32),
        (None, 3, 32, 3),
        (1, 100, None, 1),
        (4, 1, None, 4),
        (4, 100, 4, 4),
        (None, 0, None, 1),
    ],
)
def test_rows_of_a_batch_fit_the_model_and_the_pictures(fixed, pictures, wanted, rows):
    assert choose_batch_rows(FakeClassifier(fixed_rows=fixed), pictures, wanted) == rows


def test_other_rows_than_the_model_wants_are_refused():
    with pytest.raises(UsageError, match="wants 4 rows in each request, not 2"):
        choose_batch_rows(FakeClassifier(fixed_rows=4), 8, 2)
