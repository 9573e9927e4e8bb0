"""What a version does to a server is seen before the version is: models that end their server."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.commands import running
from tfserve_kit import processes, protos, tfrecord
from tfserve_kit.engines import Availability, process
from tfserve_kit.errors import PushRefused
from tfserve_kit.repository import Gate, list_versions, push
from tfserve_kit.savedmodel import WARMUP_FILE
from tfserve_kit.serving.smoke import trial

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """SavedModels by what they do; those that need it do so for the input 0 only."""
    tf = pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("hostile")
    one = tf.TensorSpec([None], tf.float32, name="x")

    def abort(x):
        with tf.control_dependencies([tf.raw_ops.Abort(error_msg="as asked")]):
            return x + 1

    def allocate(x):
        return tf.reduce_sum(tf.random.normal([2**44 + tf.size(x, out_type=tf.int64)])) + x

    def grow(x):
        grown = tf.while_loop(
            lambda y: True, lambda y: (tf.concat([y, y], 0),), (x,),
            shape_invariants=(tf.TensorShape([None]),),
        )  # fmt: skip
        return tf.reduce_sum(grown[0]) + x

    def endless(x):
        first = tf.reduce_sum(x)
        return x + tf.while_loop(lambda y: first < 1, lambda y: (y + 1,), (first,))[0]

    def demanding(x):
        with tf.control_dependencies([tf.debugging.assert_positive(x)]):
            return x + 1

    def harmless(x):
        return x + 1

    def exported(function):
        module = tf.Module()
        module.call = tf.function(lambda x: {"y": function(x)}, input_signature=[one])
        where = str(folder / function.__name__)
        tf.saved_model.save(module, where, {"serving_default": module.call})

    for function in (abort, allocate, grow, endless, demanding, harmless):
        exported(function)
    return folder


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A base path; the throw-away servers of a test leave nothing in the temporary folder."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    before = set(_children())
    yield tmp_path / "base"
    assert not list(temporary.iterdir())
    assert set(_children()) <= before


def _children():
    return [each.pid for each in psutil.Process().children(recursive=True)]


@pytest.fixture
def tried(hostile, base):
    """Push a model after its trial; return what was pushed."""

    def act(name, timeout_s=60.0):
        return push(
            str(hostile / name), base, gate=Gate(allow_ops=("*",)),
            approve=lambda place: trial(place, timeout_s=timeout_s),
        )  # fmt: skip

    return act


def warmed(model, value, target):
    """Copy a model and give it a warm-up request."""
    subprocess.run(["cp", "-r", model, target], check=True)
    log = protos.PredictionLog()
    log.predict_log.request.model_spec.name = "m"
    tensor = log.predict_log.request.inputs["x"]
    tensor.dtype = 1
    tensor.tensor_shape.dim.add(size=1)
    tensor.float_val.append(value)
    file = target / WARMUP_FILE
    file.parent.mkdir(exist_ok=True)
    tfrecord.write(file, [log.SerializeToString()])
    return target


class TestRefused:
    def test_server_that_a_request_ends(self, tried, base):
        with pytest.raises(PushRefused, match="'serving_default'") as caught:
            tried("abort")
        assert "exit status -6" in caught.value.message
        assert "--trust" in caught.value.remedy
        assert not base.exists()

    def test_server_that_its_warmup_ends(self, hostile, base, tmp_path):
        model = warmed(hostile / "abort", 1.0, tmp_path / "model")
        with pytest.raises(PushRefused, match="exit status -6"):
            push(str(model), base, gate=Gate(allow_ops=("*",)), approve=trial)
        assert not base.exists()

    @pytest.mark.parametrize("name", ["allocate", "grow"])
    def test_server_that_runs_out_of_memory(self, tried, base, monkeypatch, name):
        monkeypatch.setattr(processes, "free_memory_bytes", lambda: 3 << 30)
        with pytest.raises(PushRefused, match=r"out of memory|exit status -"):
            tried(name)
        assert not base.exists()

    def test_answer_that_never_comes(self, tried, base):
        with pytest.raises(PushRefused, match="does not answer a request of zeros within 8 s"):
            tried("endless", timeout_s=8.0)
        assert not base.exists()

    def test_load_that_never_ends(self, hostile, base, tmp_path):
        model = warmed(hostile / "endless", 0.0, tmp_path / "model")
        with pytest.raises(PushRefused, match="not ready after 8 s"):
            push(str(model), base, approve=lambda place: trial(place, timeout_s=8.0))
        assert not base.exists()

    def test_warmup_that_fails(self, hostile, base, tmp_path):
        model = warmed(hostile / "demanding", 0.0, tmp_path / "model")
        with pytest.raises(PushRefused, match="assertion failed"):
            push(str(model), base, approve=trial)
        assert not base.exists()


class TestPassed:
    def test_model_that_does_no_harm(self, tried, base):
        assert tried("harmless").remarks == ()
        assert [version.number for version in list_versions(base)] == [1]

    def test_error_answer_is_remarked(self, tried):
        (remark,) = tried("demanding").remarks
        assert remark.path == "serving_default"
        assert "answers zeros with an error" in remark.message

    @pytest.mark.parametrize("name", ["strings", "scalars", "dtypes", "multi_io", "legacy", "mlp"])
    def test_zeros_fit_signatures_of_all_kinds(self, models, base, name):
        pushed = push(str(models / name / "1"), base, approve=trial)
        assert not [each for each in pushed.remarks if "zeros" in each.message and not each.path]


def test_without_the_engine_the_push_says_that_nothing_was_tried(models, base, monkeypatch):
    class Missing:
        @staticmethod
        def available():
            return Availability(usable=False, reason="no tensorflow", remedy="install it")

    monkeypatch.setattr(process, "embedded", Missing)
    (remark,) = push(str(models / "half_plus_two" / "1"), base, approve=trial).remarks
    assert "not tested" in remark.message
    assert remark.remedy == "install it"


def test_operations_of_another_server_are_not_held_against_a_model(models, base, tmp_path):
    subprocess.run(["cp", "-r", models / "half_plus_two" / "1", tmp_path / "model"], check=True)
    file = tmp_path / "model" / "saved_model.pb"
    message = protos.SavedModel.FromString(file.read_bytes())
    message.meta_graphs[0].graph_def.node.add(name="text", op="CaseFoldUTF8")
    file.write_bytes(message.SerializeToString())
    pushed = push(str(tmp_path / "model"), base, approve=trial)
    assert any("CaseFoldUTF8" in each.message and each.path == "trial" for each in pushed.remarks)


class TestInterrupted:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_nothing_goes_on(self, hostile, base, tmp_path, number, monkeypatch):
        monkeypatch.setenv("TFKIT_TRUST", "0")
        model = warmed(hostile / "endless", 0.0, tmp_path / "model")
        with running("push-model", model, "--to", base) as command:
            server = _server_of(command.popen.pid)
            command.popen.send_signal(number)
            command.ended()
        psutil.wait_procs([server], timeout=20)
        assert not server.is_running()
        assert not list(base.glob("*")) or number == signal.SIGKILL
        if number == signal.SIGKILL:  # nobody was left to remove its folder
            for each in Path(os.environ["TMPDIR"]).iterdir():
                subprocess.run(["rm", "-rf", each], check=True)


def _server_of(pid):
    for _ in range(600):
        found = [
            each
            for each in psutil.Process(pid).children(recursive=True)
            if "tfserve_kit.embedded" in each.cmdline() and each.cmdline()[1] == "-m"
        ]
        if found and found[0].num_threads() > 4:
            return found[0]
        time.sleep(0.1)
    raise AssertionError("no server was started")


class TestConfined:
    def test_memory_is_bounded(self):
        code = "bytearray(3 << 30)"
        command = processes.confined([sys.executable, "-c", code], 1 << 30, 1000)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "MemoryError" in done.stderr

    def test_files_are_bounded(self, tmp_path):
        code = f"open({str(tmp_path / 'x')!r}, 'wb').write(bytes(5000))"
        command = processes.confined([sys.executable, "-c", code], 1 << 30, 1000)
        subprocess.run(command, capture_output=True, check=False)
        assert (tmp_path / "x").stat().st_size == 1000

    def test_it_gives_way_and_leaves_no_core(self):
        code = "import os, resource; print(os.nice(0), resource.getrlimit(resource.RLIMIT_CORE))"
        command = processes.confined([sys.executable, "-c", code], 1 << 30, 1000)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"{os.nice(0) + 10} (0, 0)\n"


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def not_trusted(self, monkeypatch):
        monkeypatch.setenv("TFKIT_TRUST", "0")

    def test_model_that_ends_its_server_is_refused_unless_it_is_trusted(self, tfkit, hostile, base):
        arguments = ("push-model", hostile / "abort", "--to", base, "--allow-op", "*")
        done = tfkit(*arguments)
        assert done.code == 8
        assert "exit status -6" in done.err
        assert "--trust" in done.err
        assert not base.exists()
        assert tfkit(*arguments, "--trust").code == 0

    def test_error_answer_is_told_beside_the_result(self, tfkit, hostile, base):
        done = tfkit("push-model", hostile / "demanding", "--to", base, "--json")
        assert done.code == 0
        assert "answers zeros with an error" in done.data["remarks"][0]["message"]
        assert "Note: serving_default: answers zeros with an error" in done.err
        assert "testing the model in a temporary server" in done.err
