"""The gate of a push: what is refused, what is remarked, and that nothing else comes of it."""

import json
import random
import shutil
import time

import pytest

from tests.unit.saved_models import add, meta_graph, tensor, write
from tfserve_kit import protos, savedmodel
from tfserve_kit.errors import Problem, Severity, TfkitError
from tfserve_kit.repository.inspection import Gate, check_gate
from tfserve_kit.savedmodel import warmup

HEALTHY = (
    "batchy",
    "defaults",
    "dtypes",
    "failing",
    "half_plus_two",
    "image",
    "legacy",
    "mlp",
    "multi_io",
    "nodefault",
    "scalars",
    "strings",
)
ORDINARY = Gate()


def refusals(problems):
    return [each for each in problems if each.severity is Severity.ERROR]


def remarks(problems):
    return [each for each in problems if each.severity is Severity.WARNING]


def refused(folder, gate=ORDINARY, **options):
    return {each.path for each in refusals(check_gate(folder, gate, **options))}


def said(folder, gate=ORDINARY):
    return "\n".join(str(each) for each in refusals(check_gate(folder, gate)))


@pytest.fixture
def half(models, tmp_path):
    return shutil.copytree(models / "half_plus_two" / "1", tmp_path / "half")


def picture_model(folder, shape=(-1, 28, 28, 1), classes=(-1, 3)):
    graph = meta_graph(("y", "Identity", "x"))
    definition = graph.signature_def["serving_default"]
    tensor(definition.inputs["x"], "x:0", shape)
    tensor(definition.outputs["y"], "y:0", classes)
    return write(folder, graph)


def put_note(folder, **content):
    (folder / "assets.extra").mkdir(exist_ok=True)
    (folder / "assets.extra" / "tfkit.json").write_text(json.dumps({"format": 1, **content}))


@pytest.mark.parametrize("model", HEALTHY)
def test_healthy_model_passes(models, model):
    verdict = check_gate(models / model / "1", Gate())
    assert refusals(verdict) == []
    assert [each.path for each in remarks(verdict)] == (
        ["serving_default"] if model == "nodefault" else []
    )


def test_model_without_the_tag_is_refused_unless_it_is_asked_for(models):
    assert refused(models / "othertag" / "1") == {"saved_model.pb"}
    assert refused(models / "othertag" / "1", Gate(tag="train")) == set()


def test_tflite_alone_is_refused(tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"TFL3")
    assert refused(tmp_path) == {"saved_model.pb"}


def test_incomplete_variables_are_refused(half):
    (half / "variables" / "variables.data-00000-of-00001").write_bytes(b"")
    assert refused(half) == {"variables/variables.data-00000-of-00001"}


def test_unreadable_candidate_is_refused(half, monkeypatch):
    def fail(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.read_bytes", fail)
    (problem,) = refusals(check_gate(half, Gate()))
    assert "Permission denied" in problem.message


@pytest.mark.parametrize("filename", ["n" * 300, "a\0b"])
def test_asset_with_an_impossible_name_is_refused(tmp_path, filename):
    graph = meta_graph(("y", "Identity", "x"))
    graph.asset_file_def.add(filename=filename)
    assert refused(write(tmp_path, graph))


class TestSignatures:
    def test_wanted_signature_must_exist(self, half):
        assert refused(half, Gate(signatures=("serving_default",))) == set()
        (problem,) = refusals(check_gate(half, Gate(signatures=("serving_defualt",))))
        assert problem.path == "serving_defualt"
        assert "did you mean serving_default?" in problem.remedy

    def test_breaking_change_is_refused_or_remarked(self, models, half):
        other = models / "mlp" / "1"
        verdict = check_gate(half, Gate(), serving=other)
        assert "serving_default.inputs.x" in {each.path for each in refusals(verdict)}
        assert "serving_default.outputs.y" in {each.path for each in remarks(verdict)}
        allowed = check_gate(half, Gate(allow_breaking=True), serving=other)
        assert refusals(allowed) == []
        assert len(remarks(allowed)) == len(refusals(verdict)) + len(remarks(verdict))

    def test_same_signatures_are_no_remark(self, models, half):
        assert remarks(check_gate(half, Gate(), serving=models / "half_plus_two" / "2")) == []

    @pytest.mark.parametrize("damage", ["missing", "broken", "othertag"])
    def test_version_in_service_that_cannot_be_read_is_a_remark(
        self, models, half, tmp_path, damage
    ):
        serving = tmp_path / "serving"
        serving.mkdir()
        if damage == "broken":
            (serving / "saved_model.pb").write_bytes(b"\xff")
        elif damage == "othertag":
            serving = models / "othertag" / "1"
        verdict = check_gate(half, Gate(), serving=serving)
        assert refusals(verdict) == []
        (remark,) = remarks(verdict)
        assert "cannot be compared" in remark.message


class TestSignaturesThatCannotAnswer:
    """A server says AVAILABLE of all of these, and fails every request."""

    @staticmethod
    def model(folder, *signatures, broken):
        """Write a model whose broken signatures read a variable that nothing sets."""
        graph = meta_graph(
            ("y", "Identity", "x"), ("z", "ReadVariableOp", "w"), ("w", "VarHandleOp")
        )
        graph.signature_def.clear()
        for name in signatures:
            out = graph.signature_def[name].outputs["out"]
            tensor(out, "z:0" if name in broken else "y:0")
        return write(folder, graph)

    @pytest.mark.parametrize(
        ("signatures", "broken", "gate", "refuses"),
        [
            (["serving_default"], ["serving_default"], ORDINARY, True),
            (["a", "b"], ["a", "b"], ORDINARY, True),
            (["serving_default", "extra"], ["extra"], ORDINARY, False),
            (["serving_default", "extra"], ["extra"], Gate(signatures=("extra",)), True),
            (["serving_default", "extra"], ["serving_default"], ORDINARY, True),
        ],
    )
    def test_refused_where_callers_need_it_and_told_elsewhere(
        self, tmp_path, signatures, broken, gate, refuses
    ):
        folder = self.model(tmp_path / "m", *signatures, broken=broken)
        verdict = check_gate(folder, gate)
        against = [each for each in refusals(verdict) if each.path in broken]
        told = [each for each in remarks(verdict) if each.path in broken]
        assert bool(against) is refuses
        assert bool(told) is not refuses
        assert "model.export(FOLDER)" in (against or told)[0].remedy

    def test_model_without_signatures_is_refused(self, tmp_path):
        folder = self.model(tmp_path / "m", broken=[])
        assert "no signature" in said(folder)


class TestGraphAsText:
    @pytest.fixture
    def as_text(self, half, tmp_path):
        message = savedmodel.parse(half)
        folder = shutil.copytree(half, tmp_path / "as_text")
        (folder / "saved_model.pb").unlink()
        (folder / "saved_model.pbtxt").write_text(protos.to_text(message), "utf-8")
        return folder

    def test_is_a_model_like_any_other(self, as_text, half):
        assert check_gate(as_text, ORDINARY) == check_gate(half, ORDINARY)
        assert savedmodel.read_signatures(as_text) == savedmodel.read_signatures(half)

    def test_binary_one_beside_it_wins_as_in_the_server(self, as_text, half):
        (as_text / "saved_model.pbtxt").write_text("no text proto {")
        assert "not the text of a SavedModel" in said(as_text)
        shutil.copy(half / "saved_model.pb", as_text)
        assert check_gate(as_text, ORDINARY) == check_gate(half, ORDINARY)

    def test_graph_in_chunks_is_refused_by_name(self, tmp_path):
        (tmp_path / "saved_model.cpb").write_bytes(b"chunks")
        assert "saved_model.cpb" in said(tmp_path)


class TestOperations:
    @pytest.fixture
    def reader(self, tmp_path):
        return write(tmp_path, meta_graph(("y", "ReadFile", "x")))

    def test_denied_operation_is_refused(self, reader):
        assert refused(reader) == {"ReadFile"}

    @pytest.mark.parametrize("allowed", [("ReadFile",), ("*",), ("WriteFile", "ReadFile")])
    def test_allowed_one_is_a_remark(self, reader, allowed):
        verdict = check_gate(reader, Gate(allow_ops=allowed))
        assert refusals(verdict) == []
        assert [each.path for each in remarks(verdict)] == ["ReadFile"]

    def test_allowing_another_one_changes_nothing(self, reader):
        assert refused(reader, Gate(allow_ops=("WriteFile",))) == {"ReadFile"}

    def test_fault_of_the_graph_cannot_be_allowed(self, tmp_path):
        broken = write(tmp_path, meta_graph(output="nowhere"))
        assert refused(broken, Gate(allow_ops=("*",))) == {"saved_model.pb"}

    def test_warning_is_a_remark_and_info_is_not(self, tmp_path):
        graph = meta_graph(("y", "Print", "x"))
        add(graph.graph_def.node, "idle", "WriteFile")
        verdict = check_gate(write(tmp_path, graph), Gate())
        assert refusals(verdict) == []
        assert [each.path for each in remarks(verdict)] == ["Print"]


class TestNote:
    @pytest.mark.parametrize(
        ("content", "place"),
        [
            ({"height": 28, "width": 28, "channels": 1, "labels": ["a", "b", "c"]}, None),
            ({}, None),
            ({"height": 32}, "height"),
            ({"width": 32}, "width"),
            ({"channels": 3}, "channels"),
            ({"labels": ["a"]}, "labels"),
            ({"channels": 1, "mean": [1, 2, 3]}, "mean"),
            ({"channels": 1, "std": [1, 2, 3]}, "std"),
            ({"colour": "red"}, "colour"),
        ],
    )
    def test_note_must_fit_the_signature(self, tmp_path, content, place):
        picture_model(tmp_path)
        put_note(tmp_path, **content)
        expected = set() if place is None else {f"assets.extra/tfkit.json {place}"}
        assert refused(tmp_path) == expected

    @pytest.mark.parametrize(
        ("shape", "content", "fits"),
        [
            ((-1, 784), {"height": 28, "width": 28, "channels": 1}, True),
            ((-1, 784), {"height": 32, "width": 28, "channels": 1}, False),
            ((-1, 784), {"height": 32}, True),
            ((-1, -1, -1, 3), {"height": 32, "width": 28, "channels": 3}, True),
            (None, {"height": 32}, True),
        ],
    )
    def test_flat_and_open_inputs(self, tmp_path, shape, content, fits):
        picture_model(tmp_path, shape)
        put_note(tmp_path, **content)
        assert (refused(tmp_path) == set()) is fits

    @pytest.mark.parametrize("classes", [(-1, -1), None, (-1,), (-1, 1)])
    def test_open_scores_and_other_ranks_take_any_labels(self, tmp_path, classes):
        picture_model(tmp_path, classes=classes)
        put_note(tmp_path, labels=["a"])
        assert refused(tmp_path) == set()

    @pytest.mark.parametrize("content", ["{", "[" * 200_000, '{"format": 2}', "\udcff"])
    def test_note_that_cannot_be_read_is_refused(self, tmp_path, content):
        picture_model(tmp_path)
        put_note(tmp_path)
        note = tmp_path / "assets.extra" / "tfkit.json"
        note.write_bytes(content.encode("utf-8", "surrogateescape"))
        assert refused(tmp_path)


class TestWarmup:
    def test_problems_of_the_requests_are_refused(self, half, monkeypatch):
        (half / "assets.extra").mkdir()
        (half / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"no records")
        assert len(refused(half)) == 1
        monkeypatch.setattr(warmup, "problems", lambda folder, *, tag: [Problem(tag, "wrong")])
        assert refused(half) == {"serve"}

    def test_without_requests_nothing_is_asked(self, half, monkeypatch):
        monkeypatch.setattr(warmup, "problems", lambda *_, **__: 1 / 0)
        assert refused(half) == set()


def mutated(data, dice):
    """Return a file's bytes as a bad disk or a bad person would leave them."""
    data = bytearray(data)
    kind = dice.choice(["cut", "flip", "overwrite", "insert", "random"])
    at = dice.randrange(len(data))
    if kind == "cut":
        del data[at:]
    elif kind == "flip":
        for _ in range(dice.randint(1, 8)):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    elif kind == "overwrite":
        data[at : at + 16] = dice.randbytes(16)
    elif kind == "insert":
        data[at:at] = dice.randbytes(dice.randint(1, 32))
    else:
        data = dice.randbytes(dice.randint(0, 400))
    return bytes(data)


def test_damaged_models_never_break_the_gate(models, tmp_path):
    names = ("half_plus_two", "nodefault", "defaults", "mlp")
    copies = [shutil.copytree(models / name / "1", tmp_path / name) for name in names]
    text_table = meta_graph(("y", "Identity", "x"), ("path", "Const"))
    text_table.asset_file_def.add(filename="words.txt").tensor_info.name = "path:0"
    add(text_table.graph_def.node, "fill", "InitializeTableFromTextFileV2", "y", "path")
    copies.append(write(tmp_path / "table", text_table))
    files = [folder / "saved_model.pb" for folder in copies]
    files += [folder / "variables" / "variables.index" for folder in (copies[0], copies[3])]
    original = {file: file.read_bytes() for file in files}
    dice, slowest_s = random.Random(7), 0.0
    refused_count = 0
    for _ in range(1000):
        file = dice.choice(files)
        file.write_bytes(mutated(original[file], dice))
        folder = next(each for each in copies if file.is_relative_to(each))
        started_s = time.process_time()
        try:
            refused_count += bool(refusals(check_gate(folder, Gate(), serving=dice.choice(copies))))
        except TfkitError:
            refused_count += 1
        slowest_s = max(slowest_s, time.process_time() - started_s)
        file.write_bytes(original[file])
    assert refused_count > 500
    assert slowest_s < 5


class TestLabelsOfANote:
    @pytest.mark.parametrize(
        ("outputs", "labels", "fits"),
        [
            ({"p": (-1, 1)}, ["cat", "dog"], True),
            ({"p": (-1, 1)}, ["cat"], True),
            ({"p": (-1, 1)}, ["cat", "dog", "cow"], False),
            ({"p": (-1,)}, ["cat", "dog"], True),
            ({"a": (-1, 3), "b": (-1, 2)}, ["cat", "dog"], True),
            ({"probabilities": (-1, 3), "logits": (-1, 3)}, ["cat", "dog"], False),
        ],
    )
    def test_count_is_that_of_the_classes_shown(self, tmp_path, outputs, labels, fits):
        graph = meta_graph(("y", "Identity", "x"))
        signature = graph.signature_def["serving_default"]
        tensor(signature.inputs["x"], "x:0", (-1, 8, 8, 3))
        signature.ClearField("outputs")
        for alias, shape in outputs.items():
            tensor(signature.outputs[alias], "y:0", shape)
        put_note(write(tmp_path / "m", graph), labels=labels)
        assert bool(refusals(check_gate(tmp_path / "m", ORDINARY))) is not fits
