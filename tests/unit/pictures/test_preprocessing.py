"""The preprocessing note: what is written is read, what is not understood is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit.errors import SpecError
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import NOTE_PATH

NUMBER = st.floats(allow_nan=False, allow_infinity=False)
SIZE = st.integers(1, 10_000)
TEXT = st.text()
NOTES = st.builds(
    Preprocessing,
    height=st.none() | SIZE,
    width=st.none() | SIZE,
    channels=st.sampled_from([None, 1, 3]),
    value_range=st.none() | st.tuples(NUMBER, NUMBER),
    mean=st.none() | st.lists(NUMBER).map(tuple),
    std=st.none() | st.lists(NUMBER.filter(bool)).map(tuple),
    labels=st.none() | st.lists(TEXT).map(tuple),
    resize=st.sampled_from([None, "bilinear", "nearest", "bicubic", "area"]),
    antialias=st.sampled_from([None, False, True]),
    framing=st.sampled_from([None, "stretch", "centre_crop", "pad"]),
    crop_fraction=st.none() | st.floats(0, 1, exclude_min=True),
    channel_order=st.sampled_from([None, "rgb", "bgr"]),
    mode=st.sampled_from([None, "caffe", "tf", "torch"]),
    encoding=st.sampled_from([None, "raw", "base64", "websafe"]),
)


def problems(version_dir, content):
    """Return the problems of a note with this content, by key."""
    note = version_dir / NOTE_PATH
    note.parent.mkdir(exist_ok=True)
    note.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    with pytest.raises(SpecError) as caught:
        Preprocessing.read(version_dir)
    assert caught.value.source == str(note)
    return {problem.path: str(problem) for problem in caught.value.problems}


@settings(deadline=None)
@given(NOTES)
def test_note_survives_writing_and_reading(tmp_path_factory, note):
    version_dir = tmp_path_factory.mktemp("version")
    note.write(version_dir)
    assert Preprocessing.read(version_dir) == note


def test_note_lies_where_the_server_leaves_files_alone(tmp_path):
    written = Preprocessing(height=8, labels=("a",)).write(tmp_path)
    assert written == tmp_path / "assets.extra" / "tfkit.json"
    assert json.loads(written.read_text()) == {"format": 1, "height": 8, "labels": ["a"]}


def test_second_note_replaces_the_first(tmp_path):
    Preprocessing(height=8, width=9).write(tmp_path)
    Preprocessing(height=7).write(tmp_path)
    assert Preprocessing.read(tmp_path) == Preprocessing(height=7)


def test_version_without_note_reads_as_empty(tmp_path):
    assert Preprocessing.read(tmp_path) == Preprocessing()


def test_values_that_the_other_sets_win_and_the_rest_stays():
    stored = Preprocessing(height=8, width=9, labels=("a", "b"))
    given_ = Preprocessing(width=5, mean=(0.5,))
    assert stored.overridden_by(given_) == Preprocessing(
        height=8, width=5, mean=(0.5,), labels=("a", "b")
    )


def test_mode_of_the_other_replaces_all_that_a_mode_stands_for():
    stored = Preprocessing(height=8, value_range=(0, 1), mean=(1,), std=(2,), channel_order="bgr")
    assert stored.overridden_by(Preprocessing(mode="tf")) == Preprocessing(height=8, mode="tf")
    both = Preprocessing(mode="tf", mean=(3,))
    assert stored.overridden_by(both) == Preprocessing(height=8, mode="tf", mean=(3,))


def test_value_of_the_other_replaces_that_of_a_stored_mode():
    stored = Preprocessing(height=8, mode="caffe")
    assert stored.overridden_by(Preprocessing(width=9)).mode == "caffe"
    found = stored.overridden_by(Preprocessing(mean=(1,)))
    assert found == Preprocessing(
        height=8, value_range=(0, 255), mean=(1,), channel_order="bgr", mode=None
    )


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_resolved_note_has_no_mode_but_its_values(mode):
    found = Preprocessing(height=8, mode=mode).resolved()
    assert (found.mode, found.height) == (None, 8)
    assert found.value_range is not None
    assert found.resolved() is found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("height", 0),
        ("height", -3),
        ("height", "224"),
        ("height", 2.5),
        ("width", True),
        ("width", None),
        ("channels", 4),
        ("channels", 0),
        ("value_range", 5),
        ("value_range", [0, 1, 2]),
        ("value_range", [0]),
        ("value_range", ["0", "1"]),
        ("mean", 0.5),
        ("mean", [True]),
        ("std", 5),
        ("std", [1, 0]),
        ("std", [0.0]),
        ("labels", "cat"),
        ("labels", [1, 2]),
        ("resize", "lanczos"),
        ("resize", True),
        ("antialias", 1),
        ("framing", "crop"),
        ("crop_fraction", 0),
        ("crop_fraction", 1.01),
        ("crop_fraction", True),
        ("channel_order", "RGB"),
        ("mode", "keras"),
        ("mode", ["tf"]),
        ("encoding", "utf-8"),
        ("lables", ["cat"]),
        ("format", 2),
        ("format", None),
    ],
)
def test_wrong_value_is_refused_with_its_key(tmp_path, key, value):
    found = problems(tmp_path, {"format": 1, key: value})
    assert found.keys() == {key}
    assert key == "lables" or repr(value) in found[key]


def test_all_problems_are_reported_at_once(tmp_path):
    found = problems(tmp_path, {"height": 0, "std": [0], "colour": "red"})
    assert found.keys() == {"colour", "format", "height", "std"}


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not JSON"), ("", "not JSON"), ("[]", "list"), ("7", "int"), ("null", "NoneType")],
)
def test_file_that_holds_no_object_is_refused(tmp_path, content, words):
    assert words in problems(tmp_path, content)[""]


def test_labels_by_index_are_brought_in_order(tmp_path):
    note = tmp_path / NOTE_PATH
    note.parent.mkdir()
    note.write_text('{"format": 1, "labels": {"1": "dog", "0": "cat"}}')
    found = Preprocessing.read(tmp_path).labels
    assert found == ("cat", "dog")
    assert found.source == str(note)
    kept = Preprocessing(height=8).overridden_by(Preprocessing(labels=found)).labels
    assert kept is found


def test_labels_with_a_gap_are_refused(tmp_path):
    assert list(problems(tmp_path, {"format": 1, "labels": {"0": "a", "2": "b"}})) == ["labels"]
