"""Files of a model that mean harm: each ends in a refusal that says why, soon and in little memory.

One table: what is done to a good model, and what the refusal names.
"""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest

from tfserve_kit import protos, tfrecord
from tfserve_kit.errors import PushRefused, SpecError
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.repository import push
from tfserve_kit.repository.inspection import Gate, inspect
from tfserve_kit.repository.intake import Limits, _checked_name
from tfserve_kit.repository.manifest import Manifest
from tfserve_kit.savedmodel import checkpoint
from tfserve_kit.savedmodel.scan import scan_graph
from tfserve_kit.tensors.proto import encode_varint

DEEP = 100_000
SIZE = 3 << 30


@pytest.fixture
def model(models, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(models / "mlp" / "1", copy)
    (copy / "assets.extra").mkdir(exist_ok=True)
    return copy


def sparse(file, size=SIZE):
    file.parent.mkdir(exist_ok=True)
    with file.open("wb") as stream:
        stream.truncate(size)


def record(file, claimed, data=b""):
    head = struct.pack("<Q", claimed)
    file.write_bytes(head + tfrecord.masked_crc(head) + data)


FAULTS = {
    "graph of 3 GB": (lambda m: sparse(m / "saved_model.pb"), "3,221,225,472 bytes"),
    "index of 3 GB": (lambda m: sparse(m / "variables" / "variables.index"), "3,221,225,472 bytes"),
    "note of 100 MB": (
        lambda m: sparse(m / "assets.extra" / "tfkit.json", 100 << 20), "104,857,600 bytes"),
    "manifest of 100 MB": (
        lambda m: sparse(m / "assets.extra" / "tfkit.manifest.json", 100 << 20),
        "104,857,600 bytes"),
    "note nested deeply": (
        lambda m: (m / "assets.extra" / "tfkit.json").write_text("[" * DEEP), "too deeply"),
    "manifest nested deeply": (
        lambda m: (m / "assets.extra" / "tfkit.manifest.json").write_text("[" * DEEP), "manifest"),
    "manifest that leads out": (
        lambda m: (m / "assets.extra" / "tfkit.manifest.json").write_text(
            Manifest({}, "", "", "").to_json().replace(
                '"files": {\n', '"files": {"../../x": {"size_bytes": 1, "sha256": ""}')),
        "outside the version"),
    "warm-up record of 2^60 bytes": (
        lambda m: record(m / "assets.extra" / "tf_serving_warmup_requests", 1 << 60), "cut off"),
    "warm-up file of zeros": (
        lambda m: sparse(m / "assets.extra" / "tf_serving_warmup_requests", 100 << 20), "checksum"),
    "text graph nested deeply": (
        lambda m: ((m / "saved_model.pb").unlink(), (m / "saved_model.pbtxt").write_text(
            "meta_graphs { object_graph_def { nodes { function { function_spec { fullargspec { "
            + "list_value { values { " * 5000)), "SavedModel"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "named"), FAULTS.values(), ids=FAULTS)
def test_damaged_model_is_refused_by_push_and_bears_inspection(model, tmp_path, damage, named):
    damage(model)
    began = time.process_time()
    with pytest.raises(PushRefused) as caught:
        push(str(model), tmp_path / "base")
    assert named in str(caught.value)
    assert len(str(caught.value)) < 10_000
    inspect(model, Gate())
    assert time.process_time() - began < 60
    assert not (tmp_path / "base").exists()


class TestNames:
    @pytest.mark.parametrize(
        ("name", "fault"),
        [
            ("a\x1b]0;x\x07b", "control character"),
            ("a\rb", "control character"),
            ("a\u202etxt.exe", "control character"),
            ("a\u2066b", "control character"),
            ("a\x9bb", "control character"),
            ("a\0b", "NUL"),
            ("/a", "absolute"),
            ("C:/a", "absolute"),
            ("a/../../b", "leads out"),
            ("a\\b", "backslash"),
            ("a" * 256, "too long"),
            ("a/" * 600 + "b", "too long"),
            ("a/" * 40 + "b", "too deep"),
            ("\udcff", "not UTF-8"),
        ],
    )
    def test_bad_name_is_refused(self, name, fault):
        with pytest.raises(PushRefused, match=fault) as caught:
            _checked_name(name, Limits())
        assert str(caught.value).isprintable() or "\n" in str(caught.value)

    @pytest.mark.parametrize("name", ["über/größe.txt", "日本/語", "a b", "emoji 👍"])
    def test_names_of_all_languages_are_fine(self, name):
        assert _checked_name(name, Limits()) == name


class TestArchives:
    @pytest.fixture
    def tarred(self, tmp_path):
        def make(*members):
            with tarfile.open(tmp_path / "it.tar", "w") as archive:
                for member, data in members:
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
            return str(tmp_path / "it.tar")

        return make

    @staticmethod
    def member(name, kind=tarfile.REGTYPE, **values):
        made = tarfile.TarInfo(name)
        made.type = kind
        for key, value in values.items():
            setattr(made, key, value)
        return made

    @pytest.mark.parametrize(
        ("kind", "word"),
        [
            (tarfile.SYMTYPE, "link"),
            (tarfile.LNKTYPE, "link"),
            (tarfile.CHRTYPE, "device"),
            (tarfile.BLKTYPE, "device"),
            (tarfile.FIFOTYPE, "device"),
            (tarfile.GNUTYPE_SPARSE, "sparse"),
        ],
    )
    def test_what_is_no_file_is_refused(self, tarred, tmp_path, kind, word):
        place = tarred((self.member("saved_model.pb", kind, linkname="/etc/passwd"), b""))
        with pytest.raises(PushRefused, match=word):
            push(place, tmp_path / "base")
        assert not (tmp_path / "base").exists()

    @pytest.mark.parametrize(
        "names", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("./a", "a"), ("a//b", "a/b")]
    )
    def test_clash_is_refused(self, tarred, tmp_path, names):
        place = tarred(*((self.member(name), b"x") for name in names))
        with pytest.raises(PushRefused, match=r"twice|a file and a folder"):
            push(place, tmp_path / "base")

    def test_sparse_members_of_terabytes_are_refused(self, tarred, tmp_path):
        pax = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 42)}
        place = tarred((self.member("saved_model.pb", pax_headers=pax), b"x" * 512))
        with pytest.raises(PushRefused, match="sparse"):
            push(place, tmp_path / "base")

    def test_entries_that_share_their_bytes_are_refused(self, tmp_path):
        file = tmp_path / "it.zip"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", bytes(8 << 20))
            first = archive.filelist[0]
            for number in range(200):
                again = zipfile.ZipInfo(f"b{number}")
                for key in ("header_offset", "compress_size", "file_size", "CRC", "compress_type"):
                    setattr(again, key, getattr(first, key))
                archive.filelist.append(again)
        with pytest.raises(PushRefused, match=r"damaged|times its size"):
            push(str(file), tmp_path / "base")
        assert not (tmp_path / "base").exists()


class TestIndex:
    """Checkpoint indices that lie."""

    @staticmethod
    def table(*blocks, handles=None):
        """Return a table file of blocks of (shared, own key, value) entries."""

        def block(entries):
            data = b"".join(
                encode_varint(shared) + encode_varint(len(key)) + encode_varint(len(value))
                + key + value
                for shared, key, value in entries
            )  # fmt: skip
            return data + struct.pack("<II", 0, 1)

        out, found = b"", []
        for entries in blocks:
            found.append((len(out), len(block(entries))))
            out += block(entries) + bytes(5)
        index = [
            (0, b"k", encode_varint(offset) + encode_varint(size))
            for offset, size in (handles(found) if handles else found)
        ]
        at, size = len(out), len(block(index))
        out += block(index) + bytes(5)
        footer = encode_varint(0) * 2 + encode_varint(at) + encode_varint(size)
        return out + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)

    def test_one_block_named_a_thousand_times(self, tmp_path):
        file = tmp_path / "variables.index"
        entries = [(0, b"%06d" % n, b"") for n in range(10_000)]
        file.write_bytes(self.table(entries, handles=lambda found: found * 10_000))
        with pytest.raises(checkpoint.CheckpointError, match="overlap"):
            checkpoint.tensors(file)

    def test_names_that_unfold(self, tmp_path):
        file = tmp_path / "variables.index"
        entries = [(0, b"x" * 100_000, b""), *[(100_000, b"y", b"")] * 1_000_000]
        file.write_bytes(self.table(entries))
        with pytest.raises(checkpoint.CheckpointError, match="names in it"):
            checkpoint.shard_sizes(file)

    @pytest.mark.parametrize("dims", [[1 << 62] * 3, [1] * 300, [1 << 62] * 100_000])
    def test_shape_that_nothing_has(self, tmp_path, dims):
        entry = protos.BundleEntryProto()
        for size in dims:
            entry.shape.dim.add(size=size)
        file = tmp_path / "variables.index"
        file.write_bytes(self.table([(0, b"name", entry.SerializeToString())]))
        with pytest.raises(checkpoint.CheckpointError, match="impossible shape"):
            checkpoint.tensors(file)

    def test_many_missing_shards_are_not_all_told(self, model, tmp_path):
        header = protos.BundleHeaderProto(num_shards=90_000)
        index = self.table([(0, b"", header.SerializeToString())])
        (model / "variables" / "variables.index").write_bytes(index)
        with pytest.raises(PushRefused, match="more") as caught:
            push(str(model), tmp_path / "base")
        assert len(str(caught.value)) < 10_000


class TestNote:
    @pytest.mark.parametrize(
        "content",
        [
            {"height": 1 << 20}, {"width": 10**400}, {"mean": [10**400]}, {"std": [float("inf")]},
            {"value_range": [float("nan"), 1]}, {"labels": [[]]}, {"height": True},
        ],
    )  # fmt: skip
    def test_impossible_values_are_refused(self, tmp_path, content):
        (tmp_path / "assets.extra").mkdir()
        note = tmp_path / "assets.extra" / "tfkit.json"
        note.write_text(json.dumps({"format": 1, **content}))
        with pytest.raises(SpecError):
            Preprocessing.read(tmp_path)

    def test_pipe_is_not_waited_for(self, tmp_path):
        (tmp_path / "assets.extra").mkdir()
        os.mkfifo(tmp_path / "assets.extra" / "tfkit.json")
        with pytest.raises(SpecError, match="regular file"):
            Preprocessing.read(tmp_path)


class TestGraphs:
    """Graphs whose scan would take for ever if it were done without bounds."""

    @staticmethod
    def quick(graph):
        began = time.process_time()
        found = scan_graph(graph)
        assert time.process_time() - began < 60
        return found

    def test_chain_of_many_nodes(self):
        graph = protos.MetaGraphDef()
        for number in range(100_000):
            before = [f"n{number - 1}"] if number else []
            graph.graph_def.node.add(name=f"n{number}", op="Identity", input=before)
        graph.signature_def["serving_default"].outputs["y"].name = "n99999:0"
        assert self.quick(graph).operations == {"Identity": 100_000}

    def test_functions_that_call_each_other_in_a_ring(self):
        graph = protos.MetaGraphDef()
        for number in range(2000):
            function = graph.graph_def.library.function.add()
            function.signature.name = f"f{number}"
            node = function.node_def.add(name="call", op="PartitionedCall")
            node.attr["f"].func.name = f"f{(number + 1) % 2000}"
        graph.graph_def.node.add(name="x", op="f0")
        graph.signature_def["s"].outputs["y"].name = "x:0"
        assert self.quick(graph).functions == 2000

    def test_signatures_by_inputs(self):
        graph = protos.MetaGraphDef()
        for number in range(200):
            graph.graph_def.node.add(name=f"n{number}", op="AddN", input=["n0"] * 5000)
        for number in range(5000):
            graph.signature_def[f"s{number}"].outputs["y"].name = f"n{number % 200}:0"
        self.quick(graph)

    def test_texts_with_very_many_origins(self):
        graph = protos.MetaGraphDef()
        nodes = graph.graph_def.node
        for number in range(3000):
            nodes.add(name=f"c{number}", op="Const")
            assign = nodes.add(name=f"a{number}", op="AssignVariableOp", input=["v", f"c{number}"])
            assign.attr["dtype"].type = 7
            nodes.add(name=f"r{number}", op="ReadVariableOp", input=["v"])
            nodes.add(name=f"f{number}", op="ReadFile", input=[f"r{number}"])
            graph.signature_def["s"].outputs[f"y{number}"].name = f"f{number}:0"
        assert any(each.rule == "ReadFile" for each in self.quick(graph).findings)

    def test_arguments_by_callers(self):
        graph = protos.MetaGraphDef()
        function = graph.graph_def.library.function.add()
        function.signature.name = "f"
        for number in range(2000):
            function.signature.input_arg.add(name=f"x{number}")
            function.node_def.add(name=f"r{number}", op="ReadFile", input=[f"x{number}"])
        for number in range(20_000):
            graph.graph_def.node.add(name=f"c{number}", op="f")
        graph.signature_def["s"].outputs["y"].name = "c0:0"
        assert any(each.severity == "error" for each in self.quick(graph).findings)


class TestMemory:
    """Graphs that take far more memory than their bytes."""

    def test_graph_that_unfolds_is_refused_before_the_machine_is_full(self, model, tmp_path):
        def field(data):
            return b"\x12" + encode_varint(len(data)) + data

        (model / "saved_model.pb").write_bytes(field(field(b"\x0a\x00" * 20_000_000)))
        code = (
            "import sys; from tfserve_kit import processes; "
            "processes.free_memory_bytes = lambda: 1 << 30; "
            "from tfserve_kit.cli import main; main(sys.argv[1:])"
        )
        for command in (("push-model", model, "--to", tmp_path / "base"), ("inspect", model)):
            done = subprocess.run(
                [sys.executable, "-c", code, *map(str, command)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert "more memory than is free" in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
        assert not (tmp_path / "base").exists()
