"""What a SavedModel holds, read without tensorflow, and graphs that cannot be read."""

import pytest

from tests.unit.saved_models import asset, meta_graph, write
from tfserve_kit import protos, savedmodel
from tfserve_kit.savedmodel import scan as graphscan
from tfserve_kit.savedmodel.batch_axes import obstacles


class TestFacts:
    def test_variables_are_counted_without_the_bookkeeping(self, models):
        version = models / "half_plus_two" / "1"
        facts = graphscan.facts(version, graphscan.meta_graph(version))
        assert (facts.parameters, facts.parameter_bytes) == (2, 8)
        assert {name.partition("/")[0] for name in facts.variables} == {"a", "b"}
        assert facts.tensorflow_version.startswith("2.")
        assert (facts.fingerprint, facts.warmup, facts.note, facts.assets) == (
            True,
            False,
            False,
            (),
        )

    def test_matrix_has_its_shape_and_type(self, models):
        version = models / "mlp" / "1"
        (variable,) = graphscan.facts(version, graphscan.meta_graph(version)).variables.values()
        assert variable.dtype.name == "float"
        assert variable.shape == (784, 10)
        assert variable.size_bytes == 784 * 10 * 4

    def test_files_beside_the_graph_are_seen(self, tmp_path):
        graph = meta_graph(("y", "Identity", "x"))
        asset(graph)
        write(tmp_path, graph)
        (tmp_path / "assets.extra").mkdir()
        for name in ("tf_serving_warmup_requests", "tfkit.json"):
            (tmp_path / "assets.extra" / name).touch()
        facts = graphscan.facts(tmp_path, graph)
        assert (facts.warmup, facts.note, facts.assets) == (True, True, ("words.txt",))
        assert facts.parameters == 0

    def test_damaged_index_counts_as_no_variables(self, models, tmp_path):
        graph = graphscan.meta_graph(models / "mlp" / "1")
        (tmp_path / "variables").mkdir()
        (tmp_path / "variables" / "variables.index").write_bytes(b"no table" * 20)
        assert graphscan.facts(tmp_path, graph).variables == {}

    @pytest.mark.parametrize(
        ("model", "signature", "answer"),
        [("mlp", "serving_default", True), ("scalars", "scalar", False), ("scalars", "echo", True),
         ("scalars", "no_input", False)],
    )  # fmt: skip
    def test_batchable_if_every_first_axis_is_open(self, models, model, signature, answer):
        found = savedmodel.read(models / model / "1").signatures[signature]
        assert (not list(obstacles(found))) is answer


class TestReading:
    def test_damaged_file_is_a_value_error(self, tmp_path):
        (tmp_path / "saved_model.pb").write_bytes(b"\xff" * 100)
        with pytest.raises(ValueError, match="100 bytes"):
            graphscan.meta_graph(tmp_path)

    def test_damaged_asset_is_a_value_error(self, tmp_path):
        graph = meta_graph(("y", "Identity", "x"))
        packed = graph.collection_def["saved_model_assets"].any_list.value.add()
        packed.Pack(protos.AssetFileDef(filename="words.txt"))
        packed.value = packed.value[:-1]
        with pytest.raises(ValueError, match="asset"):
            graphscan.meta_graph(write(tmp_path, graph))

    def test_tag_chooses_the_graph(self, tmp_path):
        write(tmp_path, meta_graph(tags=["train"]), meta_graph(tags=["serve", "gpu"]))
        assert graphscan.meta_graph(tmp_path, tag="gpu,serve").meta_info_def.tags == [
            "serve",
            "gpu",
        ]
        with pytest.raises(ValueError, match="'serve'"):
            graphscan.meta_graph(tmp_path)
