"""SavedModels read without tensorflow: what they say, and what is missing in them."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit import protos, savedmodel
from tfserve_kit.savedmodel import TensorSpec, parse, problems, read_signatures
from tfserve_kit.tensors import dtypes

SHARD = "variables/variables.data-00000-of-00001"
INDEX = "variables/variables.index"


@pytest.fixture
def model(models, tmp_path):
    """Return a copy of a complete model with variables."""
    return shutil.copytree(models / "half_plus_two" / "1", tmp_path / "model")


def write(folder, *tag_sets, op="", saved_variable=False, assets=()):
    """Write a SavedModel with one empty graph for each set of tags."""
    message = protos.SavedModel(saved_model_schema_version=1)
    for tags in tag_sets:
        graph = message.meta_graphs.add()
        graph.meta_info_def.tags.extend(tags)
        graph.signature_def[f"of {'+'.join(tags)}"].method_name = "tensorflow/serving/predict"
        if op:
            graph.graph_def.node.add(name="v", op=op)
        if saved_variable:
            graph.object_graph_def.nodes.add().variable.name = "v"
        for asset in assets:
            graph.asset_file_def.add(filename=asset)
    folder.mkdir(exist_ok=True)
    (folder / "saved_model.pb").write_bytes(message.SerializeToString())
    return folder


def found_in(folder, **options):
    """Return the problems of a folder as text, by path."""
    return {problem.path: str(problem) for problem in problems(folder, **options)}


class TestRead:
    def test_signature_has_inputs_outputs_and_method(self, models):
        found = read_signatures(models / "multi_io" / "1")["serving_default"]
        assert found.name == "serving_default"
        assert {alias: str(spec) for alias, spec in found.inputs.items()} == {
            "a": "int32 [?, 2]",
            "b": "float [?, 2]",
        }
        assert {alias: str(spec) for alias, spec in found.outputs.items()} == {
            "double_a": "int32 [?, 2]",
            "sum": "float [?, 2]",
        }
        assert found.method_name == "tensorflow/serving/predict"
        assert found.inputs["a"].name == "a:0"

    def test_every_dtype_of_a_signature_is_known(self, models):
        signatures = read_signatures(models / "dtypes" / "1")
        for name, signature in signatures.items():
            if name != "serving_default":
                assert signature.inputs["x"] == TensorSpec(
                    f"in_{name}:0", dtypes.by_name(name), (None,)
                )

    @pytest.mark.parametrize(
        ("signature", "alias", "shape"), [("scalar", "sc", ()), ("echo", "u", None)]
    )
    def test_scalar_and_open_rank_are_told_apart(self, models, signature, alias, shape):
        assert read_signatures(models / "scalars" / "1")[signature].inputs[alias].shape == shape

    def test_signatures_that_run_initializers_are_left_out(self, models):
        graph = protos.SavedModel.FromString(
            (models / "half_plus_two" / "1" / "saved_model.pb").read_bytes()
        ).meta_graphs[0]
        assert "__saved_model_init_op" in graph.signature_def
        assert list(read_signatures(models / "half_plus_two" / "1")) == ["serving_default"]

    def test_type_that_cannot_travel_has_no_dtype(self):
        definition = protos.SignatureDef()
        definition.inputs["table"].dtype = 20
        definition.inputs["table"].tensor_shape.dim.add(size=3)
        spec = savedmodel.parse_signatures({"s": definition})["s"].inputs["table"]
        assert spec.dtype is None
        assert str(spec) == "opaque [3]"

    @pytest.mark.parametrize(
        ("shape", "text"),
        [((), "float []"), ((None, 3), "float [?, 3]"), ((0,), "float [0]"), (None, "float [...]")],
    )
    def test_tensor_reads_as_dtype_and_shape(self, shape, text):
        assert str(TensorSpec("x:0", dtypes.by_name("float"), shape)) == text

    def test_tag_chooses_the_graph(self, tmp_path):
        write(tmp_path, ["serve", "tpu"], ["train"], ["serve"])
        for tag in ("train", "serve", "serve,tpu", "tpu,serve"):
            wanted = "of " + ("serve+tpu" if "," in tag else tag)
            assert list(read_signatures(tmp_path, tag=tag)) == [wanted]
        tags = [set(graph.meta_info_def.tags) for graph in parse(tmp_path).meta_graphs]
        assert tags == [{"serve", "tpu"}, {"train"}, {"serve"}]

    @pytest.mark.parametrize("tag", ["serve", "tpu", "serve,gpu", ""])
    def test_graph_with_other_tags_is_refused_naming_those_it_has(self, tmp_path, tag):
        write(tmp_path, ["serve", "tpu"], ["train"])
        with pytest.raises(ValueError, match=r"serve\+tpu, train") as caught:
            read_signatures(tmp_path, tag=tag)
        assert repr(tag) in str(caught.value)

    def test_missing_file_is_an_os_error(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            read_signatures(tmp_path)

    def test_graph_file_cut_off_anywhere_is_refused(self, models, tmp_path):
        content = (models / "nodefault" / "1" / "saved_model.pb").read_bytes()
        for length in range(len(content)):
            (tmp_path / "saved_model.pb").write_bytes(content[:length])
            with pytest.raises(ValueError, match=f"{length} bytes"):
                read_signatures(tmp_path)

    @settings(deadline=None)
    @given(st.binary(max_size=100))
    def test_any_bytes_are_read_or_a_value_error(self, tmp_path_factory, content):
        folder = tmp_path_factory.mktemp("model")
        (folder / "saved_model.pb").write_bytes(content)
        with pytest.raises(ValueError, match=r"bytes|tagged"):
            read_signatures(folder, tag="a tag that chance does not write")


class TestProblems:
    @pytest.mark.parametrize(
        "name", ["half_plus_two", "mlp", "legacy", "strings", "dtypes", "multi_io"]
    )
    def test_complete_model_has_none(self, models, name):
        assert problems(models / name / "1") == []

    def test_missing_graph_is_named_with_the_folder_and_a_remedy(self, tmp_path):
        text = found_in(tmp_path)["saved_model.pb"]
        assert str(tmp_path) in text
        assert "tf.saved_model.save" in text

    def test_folder_in_place_of_the_graph_is_a_missing_graph(self, tmp_path):
        (tmp_path / "saved_model.pb").mkdir()
        assert "missing" in found_in(tmp_path)["saved_model.pb"]

    @pytest.mark.parametrize("content", [b"", b"<html>", b"broken", b"\x08\x01"])
    def test_file_that_is_no_saved_model_is_named_with_its_size(self, model, content):
        (model / "saved_model.pb").write_bytes(content)
        found = found_in(model)
        assert found.keys() == {"saved_model.pb"}
        assert f"({len(content)} bytes)" in found["saved_model.pb"]
        assert "export" in found["saved_model.pb"]

    def test_other_tag_is_a_problem_unless_asked_for(self, models):
        folder = models / "othertag" / "1"
        assert "train" in found_in(folder)["saved_model.pb"]
        assert problems(folder, tag="train") == []

    def test_missing_index_is_a_problem_where_variables_are_restored(self, model):
        (model / INDEX).unlink()
        found = found_in(model)
        assert found.keys() == {INDEX}
        assert "copy the variables folder" in found[INDEX]

    @pytest.mark.parametrize("op", ["VarHandleOp", "VariableV2", "Variable"])
    def test_any_kind_of_variable_needs_the_index(self, tmp_path, op):
        assert found_in(write(tmp_path / "m", ["serve"], op=op)).keys() == {INDEX}

    def test_variable_of_the_object_graph_needs_the_index(self, tmp_path):
        assert found_in(write(tmp_path / "m", ["serve"], saved_variable=True)).keys() == {INDEX}

    def test_graph_without_variables_needs_no_index(self, tmp_path):
        assert problems(write(tmp_path / "m", ["serve"], op="Placeholder")) == []

    def test_damaged_index_is_a_problem_even_if_no_variable_is_seen(self, tmp_path):
        folder = write(tmp_path / "m", ["serve"])
        (folder / "variables").mkdir()
        (folder / INDEX).write_bytes(b"damaged")
        assert "truncated" in found_in(folder)[INDEX]

    def test_missing_shard_is_named(self, model):
        (model / SHARD).unlink()
        found = found_in(model)
        assert found.keys() == {SHARD}
        assert "missing" in found[SHARD]

    def test_shard_one_byte_short_is_named_with_both_sizes(self, model):
        shard = model / SHARD
        shard.write_bytes(shard.read_bytes()[:-1])
        found = found_in(model)
        assert found.keys() == {SHARD}
        assert "224 bytes of the 225" in found[SHARD]

    def test_longer_shard_is_fine(self, model):
        with (model / SHARD).open("ab") as file:
            file.write(b"more")
        assert problems(model) == []

    def test_missing_assets_are_named(self, tmp_path):
        folder = write(tmp_path / "m", ["serve"], assets=["vocab.txt", "sub/labels.txt", "there"])
        (folder / "assets").mkdir()
        (folder / "assets" / "there").touch()
        found = found_in(folder)
        assert found.keys() == {"assets/vocab.txt", "assets/sub/labels.txt"}
        assert "assets folder" in found["assets/vocab.txt"]

    def test_all_problems_are_reported_at_once(self, tmp_path):
        folder = write(tmp_path / "m", ["serve"], op="VarHandleOp", assets=["vocab.txt"])
        assert found_in(folder).keys() == {INDEX, "assets/vocab.txt"}
