"""What people stumbled over, from end to end: whole commands, on the models of the field."""

import http.server
import json
import threading
import time

import numpy as np
import pytest

from tests.field.cells import plain

pytestmark = pytest.mark.tensorflow


def done_well(done):
    assert done.code == 0, done.err
    return done


def strictly(text):
    """Read JSON as every parser does: NaN and Infinity have no place in it."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


class TestWhatDecidesAnAnswer:
    @pytest.mark.parametrize("command", [("predict",), ("request",)])
    def test_range_of_the_graph_is_taken_and_told_by_every_command(self, field, command):
        done = done_well(field.tfkit(*command, "bright.png", "--model", "keras_functional"))
        assert "range 0 to 255 (from the graph: " in done.err

    def test_predict_and_request_prepare_the_same_picture(self, field):
        asked = ("mid.png", "--model", "keras_sequential", "--json")
        scores = {
            each["index"]: each["score"]
            for each in done_well(field.tfkit("predict", *asked)).data[0]["scores"]
        }
        (row,) = done_well(field.tfkit("request", *asked)).data["outputs"]["output_0"]
        np.testing.assert_allclose([scores[index] for index in range(3)], row, rtol=1e-5)

    def test_assumed_range_is_told_with_the_result_of_evaluate(self, field):
        done = field.tfkit("evaluate", "sets/brightness", "--model", "picture_unit", "--json")
        told = "range 0 to 1 (change: --range LOW,HIGH)"
        assert told in done_well(done).data["assumed"]

    def test_wrong_range_is_an_option_and_shows(self, field):
        how = ("--range", "0,255", "--json")
        done = field.tfkit("evaluate", "sets/brightness", "--model", "picture_unit", *how)
        assert done_well(done).data["results"][0]["wrong"] == 2  # all but black is bright

    def test_objects_are_shown_with_boxes_and_named_output(self, field):
        done = field.tfkit("predict", "red.png", "--model", "detector", "--size", "8x8")
        assert "0.9000      3    at 0, 0, 1, 1" in done_well(done).out
        assert "output 'detection_boxes', objects" in done.err

    @pytest.mark.parametrize(("threshold", "wrong"), [("0.5", 0), ("1", 2)])
    def test_threshold_of_one_column_is_an_option(self, field, threshold, wrong):
        how = ("--threshold", threshold, "--json")
        done = field.tfkit("evaluate", "sets/redness", "--model", "sigmoid", *how)
        assert done_well(done).data["results"][0]["wrong"] == wrong

    def test_two_outputs_with_scores_are_refused_by_evaluate_too(self, field):
        done = field.tfkit("evaluate", "sets/colours", "--model", "two_heads")
        assert done.code == 2
        assert "2 outputs that may be class scores" in done.err

    @pytest.mark.parametrize("layout", [(), ("--size", "8x8", "--channels", "3")])
    def test_channels_first_goes_with_and_without_the_size(self, field, layout):
        how = ("--model", "picture_channels_first", *layout, "--json")
        done = done_well(field.tfkit("predict", "red.png", *how))
        assert done.data[0]["scores"][0]["index"] == 2


class TestInputsBesideRows:
    def test_rows_of_json_that_each_name_the_parameter(self, field):
        rows = [{"x": [1, 2], "factor": 2}, {"x": [3, 4], "factor": 2}]
        (field.home / "named.json").write_text(json.dumps({"instances": rows}))
        done = field.tfkit("request", "named.json", "--model", "scalar_factor", "--json")
        assert done_well(done).data["outputs"]["y"] == [[2, 4], [6, 8]]

    def test_files_are_joined_where_the_parameter_is_the_same(self, field):
        file = field.file_of({"x": np.float32([[1, 2]]), "factor": np.float32(3)})
        done = field.tfkit("request", file, file, "--model", "scalar_factor", "--json")
        assert done_well(done).data["outputs"]["y"] == [[3, 6], [3, 6]]

    def test_files_with_another_parameter_are_refused(self, field):
        files = [field.file_of({"x": [[1.0, 2.0]], "factor": each}) for each in (3.0, 4.0)]
        done = field.tfkit("request", *files, "--model", "scalar_factor")
        assert done.code == 6
        assert "'factor' has no batch axis" in done.err

    def test_perf_in_batches_sends_the_parameter_with_each(self, field):
        how = ("--batch", "2", "--duration", "0.3", "--json")
        done = done_well(field.tfkit("perf", "--model", "scalar_factor", *how))
        assert (done.data["errors"], done.data["requests"] > 0) == ({}, True)
        assert "'factor' = 1.0" in done.err

    def test_push_under_traffic_sends_the_parameter_with_each(self, field):
        how = ("--to", "models/scalar_factor", "--verify", "--rate", "20", "--json")
        done = done_well(field.tfkit("push-model", "zoo/scalar_factor", *how))
        assert done.data["version"] == 2

    def test_key_beside_pictures_is_filled_by_every_command(self, field):
        for command in (("predict", "red.png"), ("request", "red.png")):
            done = done_well(field.tfkit(*command, "--model", "bytes_and_key"))
            assert "input 'key' is the picture's name (assumed" in done.err
        done = field.tfkit("request", "red.png", "--model", "bytes_and_key", "--json")
        assert plain(done.data["outputs"]["key"]) == ["red.png"]


CANNOT = {
    "scalar_factor": "input 'factor' is float []: it has no batch axis",
    "picture_batch_of_4": "every request must have 4 rows",
    "constant_beside_rows": "output 'version' is float [2], not row by row",
    "sum_of_rows": "output 'total' is float [1], not row by row",
    "ragged_in": "the parts of one ragged tensor",
}


@pytest.mark.parametrize("model", CANNOT)
def test_batching_of_a_model_that_cannot_be_is_an_error_before_the_start(field, model):
    file = field.home / f"{model}.toml"
    file.write_text(
        f'[models.{model}]\nbase_path = "models/{model}"\n'
        '[models.fine]\nbase_path = "models/keras_functional"\n[batching]\nmax_batch_size = 8\n'
    )
    done = field.tfkit("lint", "--config", file, "--json")
    assert done.code == 3
    (fault,) = [each for each in done.data if each["severity"] == "error"]
    assert (fault["rule"], fault["path"]) == ("cannot-batch", f"models.{model}.base_path")
    assert CANNOT[model] in fault["message"]


class TestJson:
    def test_numbers_that_are_none_are_texts(self, field):
        done = done_well(field.tfkit("predict", "red.png", "--model", "nan_scores", "--json"))
        (picture,) = strictly(done.out)["data"]
        assert [each["score"] for each in picture["scores"]][-1] == "NaN"
        asked = field.file_of({"x": [0.0, -1.0]})
        done = done_well(field.tfkit("request", asked, "--model", "logarithm", "--json"))
        assert strictly(done.out)["data"]["outputs"] == {"y": ["-Infinity", "NaN"]}

    @pytest.mark.parametrize("protocol", ["grpc", "rest"])
    def test_answer_of_two_million_numbers_comes_in_seconds(self, field, protocol):
        asked = field.file_of({"n": 2000})
        how = ("--model", "large_answer", "--protocol", protocol, "--output", f"{protocol}.npz")
        started_s = time.monotonic()
        done_well(field.tfkit("request", asked, *how))
        assert time.monotonic() - started_s < 20
        answer = np.load(field.home / f"{protocol}.npz")["y"]
        assert (answer.shape, answer.min(), answer.max()) == ((2000, 1000), 0.5, 0.5)


TABLES = {
    "header.csv": "filename,class\nred.png,red\ngreen.png,green\nblue.png,blue\n",
    "semicolons.csv": "red.png;red\ngreen.png;green\nblue.png;blue\n",
    "tabs.tsv": "class\tfilename\nred\tred.png\ngreen\tgreen.png\nblue\tblue.png\n",
    "missing.csv": "red.png,red\ngreen.png,green\nblue.png,blue\nnone.png,violet\n",
}
LABELS = {
    "list.json": '["blue", "green", "red"]',
    "by_index.json": '{"0": "blue", "1": "green", "2": "red"}',
    "class_indices.json": '{"blue": 0, "green": 1, "red": 2}',
    "class_index.json": '{"0": ["n01", "blue"], "1": ["n02", "green"], "2": ["n03", "red"]}',
    "lines.txt": "blue\r\ngreen\r\nred\r\n",
    "background.txt": "background\nblue\ngreen\nred\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_as_they_are(field, name):
    (field.home / name).write_text(TABLES[name])
    done = done_well(field.tfkit("evaluate", name, "--model", "picture_uint8", "--json"))
    (result,) = done.data["results"]
    assert (result["answered"], result["wrong"]) == (3, 0)
    assert [each["label"] for each in result["classes"]] == ["blue", "green", "red"]


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_read_as_they_are(field, name):
    (field.home / name).write_text(LABELS[name])
    how = ("--model", "picture_uint8", "--labels", name, "--json")
    (said,) = done_well(field.tfkit("predict", "green.png", *how)).data
    assert (said["scores"][0]["index"], said["scores"][0]["label"]) == (1, "green")


def test_labels_of_another_number_name_the_file(field):
    (field.home / "few.txt").write_text("blue\ngreen\n")
    done = field.tfkit("predict", "green.png", "--model", "picture_uint8", "--labels", "few.txt")
    assert done.code == 2
    assert "2" in done.err and "3" in done.err


@pytest.fixture
def picky_site(field):
    """A site that refuses programs that do not say who they are: its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            welcome = self.headers.get("User-Agent", "").startswith("tfkit")
            self.send_response(200 if welcome and self.path == "/red.png" else 403)
            self.end_headers()
            if welcome and self.path == "/red.png":
                self.wfile.write((field.home / "red.png").read_bytes())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class TestPicturesByUrl:
    def test_site_is_told_who_asks(self, field, picky_site):
        done = field.tfkit("predict", f"{picky_site}/red.png", "--model", "picture_uint8", "--json")
        assert done_well(done).data[0]["scores"][0]["index"] == 2

    def test_refusal_of_a_site_is_explained(self, field, picky_site):
        done = field.tfkit("predict", f"{picky_site}/other.png", "--model", "picture_uint8")
        assert done.code == 6
        assert "403" in done.err


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("models/age/1", "give the folder above it: {home}/models/age"),
        ("models/age/1/variables", "give the base path: {home}/models/age"),
        ("models", "give one of them: --model age={home}/models/age"),
        ("odd", "mv {home}/odd/v1 {home}/odd/1"),
    ],
)
@pytest.mark.parametrize("command", [("lint",), ("serve", "--engine", "embedded")])
def test_base_path_that_is_none_leads_to_the_right_one_at_once(field, place, remedy, command):
    odd = field.home / "odd" / "v1"
    if not odd.exists():
        odd.parent.mkdir()
        odd.symlink_to(field.zoo / "age", target_is_directory=True)
    started_s = time.monotonic()
    done = field.tfkit(*command, "--model", f"m={place}", *(["--json"] * (command == ("lint",))))
    assert done.code == 3
    assert remedy.format(home=field.home) in done.out + done.err
    assert time.monotonic() - started_s < 20


class TestPastedAddresses:
    def test_address_of_a_prediction_says_the_server(self, field):
        url = f"{field.url('rest')}/v1/models/half_plus_two:predict"
        done = field.tfkit("request", "x.json", "--url", url, "--json")
        assert done_well(done).data["outputs"] == {"y": [3.5]}

    @pytest.mark.parametrize(("said", "meant"), [("http", "rest"), ("grpc", "grpc")])
    def test_address_of_the_other_protocol_is_told_with_the_right_one(self, field, said, meant):
        other = {"rest": "grpc", "grpc": "rest"}[meant]
        url = f"{said}://{field.url(other).partition('://')[2]}"
        done = field.tfkit("request", "x.json", "--model", "half_plus_two", "--url", url)
        assert done.code in {5, 6}
        assert field.url(other) in done.err
