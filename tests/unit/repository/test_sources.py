"""Where models come from: folders, versions, archives, the web, object stores, Keras files."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from tfserve_kit import savedmodel
from tfserve_kit.errors import PushRefused
from tfserve_kit.repository import Source, locate, push, sources
from tfserve_kit.repository.intake import Limits
from tfserve_kit.repository.manifest import MANIFEST_PATH, Manifest


class Listener:
    def __init__(self):
        self.steps, self.notes, self.counts = [], [], []

    def step(self, text):
        self.steps.append(text)

    def note(self, text):
        self.notes.append(text)

    def advance(self, done, total):
        self.counts.append((done, total))


@pytest.fixture
def half(models):
    return models / "half_plus_two" / "1"


@pytest.fixture
def fetch(tmp_path):
    """Fetch a source into a new folder each time."""

    def act(place, progress=None, **options):
        folder = tmp_path / f"staging-{time.monotonic_ns()}"
        folder.mkdir()
        act.folder = folder
        return Source(str(place), **options).fetch(folder, progress=progress or Listener())

    return act


def refused(fetch, place, **options):
    with pytest.raises(PushRefused) as caught:
        fetch(place, **options)
    return str(caught.value)


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_is(fetched, folder, expected):
    """The fetched model is the expected one, lies in the folder, and its files are described."""
    found = tree(expected)
    assert tree(fetched[0]) == found
    assert folder in fetched[0].parents
    assert {name: file.sha256 for name, file in fetched[1].items()} == {
        name: sha256(data).hexdigest() for name, data in found.items()
    }


def zipped(folder, prefix=""):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in tree(folder).items():
            archive.writestr(prefix + name, data)
    return out.getvalue()


def tgz(folder, prefix="."):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.add(folder, prefix)
    return out.getvalue()


class TestFolders:
    def test_saved_model_is_copied(self, fetch, half):
        fetched = fetch(half)
        assert_is(fetched, fetch.folder, half)

    def test_file_url_is_a_path(self, fetch, half):
        assert_is(fetch(f"file://{half}"), fetch.folder, half)

    def test_highest_version_is_taken_and_told(self, fetch, models):
        told = Listener()
        fetched = fetch(models / "half_plus_two", told)
        assert_is(fetched, fetch.folder, models / "half_plus_two" / "2")
        assert told.notes == [f"Taking version 2, the highest of 2 in {models / 'half_plus_two'}"]

    def test_numbers_count_not_their_spelling(self, fetch, half, tmp_path):
        for name in ("9", "010", "-3"):
            shutil.copytree(half, tmp_path / "base" / name)
        (tmp_path / "base" / "010" / "mark").touch()
        assert "mark" in fetch(tmp_path / "base")[1]

    def test_version_may_be_chosen(self, fetch, models, half):
        assert_is(fetch(models / "half_plus_two", version=1), fetch.folder, half)

    def test_version_that_is_not_there_is_refused(self, fetch, models, half):
        assert "it holds 1, 2" in refused(fetch, models / "half_plus_two", version=3)
        assert "no version folders" in refused(fetch, half, version=3)

    def test_only_model_in_a_folder_is_taken(self, fetch, half, tmp_path):
        shutil.copytree(half, tmp_path / "wrap" / "model" / "1")
        shutil.copytree(half, tmp_path / "wrap" / ".tfkit-retired-2")
        told = Listener()
        assert_is(fetch(tmp_path / "wrap", told), fetch.folder, half)
        assert not told.notes

    def test_several_models_are_refused_naming_them(self, fetch, half, tmp_path):
        for name in ("cats", "dogs"):
            shutil.copytree(half, tmp_path / "zoo" / name)
        assert "several models: cats, dogs" in refused(fetch, tmp_path / "zoo")

    def test_version_pushed_before_may_be_pushed_on(self, half, tmp_path):
        push(half, tmp_path / "test")
        pushed = push(tmp_path / "test", tmp_path / "live")
        push(tmp_path / "test", tmp_path / "test")
        assert pushed.path == tmp_path / "live" / "1"
        assert (tmp_path / "test" / "2").is_dir()

    def test_checksum_of_a_folder_is_refused(self, fetch, half):
        assert "is not a single file" in refused(fetch, half, sha256="0" * 64)

    @pytest.mark.parametrize(
        ("names", "found"),
        [
            (["saved_model.pb", "a/saved_model.pb"], [""]),
            (["1/saved_model.pb", "1/assets/x/saved_model.pb", "2/saved_model.pb"], ["1", "2"]),
            (["m/1/saved_model.pb", "m/1/x"], ["m/1"]),
            ([".tfkit-retired-1/saved_model.pb", "saved_model.txt"], []),
            (["saved_model.pbtxt", "assets/x"], [""]),
            (["a/saved_model.pb", "a/saved_model.pbtxt", "b/saved_model.pbtxt"], ["a", "b"]),
        ],
    )
    def test_models_among_files(self, names, found):
        assert locate.models_among(names) == found


class TestArchives:
    @pytest.mark.parametrize("pack", [zipped, tgz])
    @pytest.mark.parametrize("prefix", ["", "model/", "model/1/", "a/b/c/d/"])
    def test_model_is_found_within(self, fetch, half, tmp_path, pack, prefix):
        (tmp_path / "it.bin").write_bytes(pack(half, prefix or ("." if pack is tgz else "")))
        assert_is(fetch(tmp_path / "it.bin"), fetch.folder, half)

    @pytest.mark.parametrize("pack", [zipped, tgz])
    def test_highest_version_within_is_taken(self, fetch, models, tmp_path, pack):
        (tmp_path / "it").write_bytes(pack(models / "half_plus_two"))
        told = Listener()
        fetched = fetch(tmp_path / "it", told)
        assert_is(fetched, fetch.folder, models / "half_plus_two" / "2")
        assert "Taking version 2" in told.notes[0]
        size = (tmp_path / "it").stat().st_size
        assert told.counts[-1] == (size, size)
        assert told.counts == sorted(told.counts)
        assert_is(fetch(tmp_path / "it", version=1), fetch.folder, models / "half_plus_two" / "1")

    def test_archive_without_a_model_is_refused(self, fetch, tmp_path):
        (tmp_path / "words").mkdir()
        (tmp_path / "words" / "readme").write_text("hello")
        (tmp_path / "it.zip").write_bytes(zipped(tmp_path / "words"))
        assert "saved_model.pb: is missing" in refused(fetch, tmp_path / "it.zip")

    def test_incomplete_model_is_refused_by_the_gate(self, half, tmp_path):
        source = shutil.copytree(half, tmp_path / "source")
        (source / "variables" / "variables.index").unlink()
        (tmp_path / "it.zip").write_bytes(zipped(source))
        with pytest.raises(PushRefused, match=r"variables\.index"):
            push(tmp_path / "it.zip", tmp_path / "base")
        assert not (tmp_path / "base").exists()

    def test_push_of_an_archive_is_remembered(self, half, tmp_path):
        (tmp_path / "it.zip").write_bytes(zipped(half, "model/"))
        pushed = push(tmp_path / "it.zip", tmp_path / "base")
        manifest = Manifest.read(pushed.path)
        assert manifest.source == str(tmp_path / "it.zip")
        assert manifest.files.keys() == tree(half).keys()
        assert tree(pushed.path).keys() == {*tree(half), MANIFEST_PATH.as_posix()}
        assert [path.name for path in (tmp_path / "base").iterdir()] == ["1"]

    def test_checksum_is_compared(self, fetch, half, tmp_path):
        data = zipped(half)
        (tmp_path / "it.zip").write_bytes(data)
        right = sha256(data).hexdigest()
        assert_is(fetch(tmp_path / "it.zip", sha256=right.upper()), fetch.folder, half)
        text = refused(fetch, tmp_path / "it.zip", sha256="0" * 64)
        assert right in text
        assert "0" * 64 in text

    def test_limits_hold(self, fetch, half, tmp_path):
        (tmp_path / "it.zip").write_bytes(zipped(half))
        text = refused(fetch, tmp_path / "it.zip", limits=Limits(max_files=2))
        assert "more than 2 files" in text

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("model.onnx", "/model.onnx is an ONNX model\n  Try: convert it to a SavedModel"),
            ("m.tflite", "is a TensorFlow Lite model\n  Try: call it BASE_PATH/1/model.tflite"),
            ("m.ckpt-3.data-00000-of-00001", "is a checkpoint: values of variables"),
            ("frozen.pb", "is a graph by itself"),
            ("page.zip", "page.zip is no archive that can be unpacked here: it starts with b'ZZZ"),
            ("notes", "notes is no archive that can be unpacked here"),
        ],
    )
    def test_other_files_are_refused_by_what_they_are(self, fetch, tmp_path, name, text):
        (tmp_path / name).write_bytes(b"Z" * 800)
        assert text in refused(fetch, tmp_path / name)

    def test_file_of_a_saved_model_is_refused_with_the_folder_to_give(self, fetch, half):
        assert f"Try: give {half}" in refused(fetch, half / "saved_model.pb")

    def test_archive_of_several_models_is_to_be_unpacked(self, fetch, half, tmp_path):
        for name in ("one", "two"):
            shutil.copytree(half, tmp_path / "both" / name)
        (tmp_path / "it.zip").write_bytes(zipped(tmp_path / "both"))
        assert "an archive is unpacked first" in refused(fetch, tmp_path / "it.zip")


class Web(ThreadingHTTPServer):
    """A server on this machine that answers as it is told."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.asked = {}, []

    def url(self, path, credentials=""):
        return f"http://{credentials}127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request, client_address):
        """A client that gives up is no fault here."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        status, headers, body = self.server.answers[self.path.partition("?")[0]]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in [body] if isinstance(body, bytes) else body:
            self.wfile.write(piece)
            self.wfile.flush()

    def log_message(self, *_):
        pass


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with Web() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def whole(data):
    return 200, {"Content-Length": len(data)}, data


class TestWeb:
    @pytest.mark.parametrize("pack", [zipped, tgz])
    def test_archive_is_downloaded_and_unpacked(self, fetch, web, half, pack):
        data = pack(half, "model") if pack is tgz else pack(half, "model/")
        web.answers["/it"] = whole(data)
        told = Listener()
        assert_is(fetch(web.url("/it"), told), fetch.folder, half)
        assert (len(data), len(data)) in told.counts
        assert "--sha256" in told.notes[0]

    def test_length_need_not_be_known(self, fetch, web, half):
        web.answers["/it"] = 200, {}, zipped(half)
        assert_is(fetch(web.url("/it")), fetch.folder, half)

    def test_redirects_are_followed(self, fetch, web, half):
        web.answers["/a"] = 302, {"Location": "/b", "Content-Length": 0}, b""
        web.answers["/b"] = 307, {"Location": web.url("/c"), "Content-Length": 0}, b""
        web.answers["/c"] = whole(zipped(half))
        assert_is(fetch(web.url("/a")), fetch.folder, half)

    @pytest.mark.parametrize("target", ["/a", "file:///etc/passwd", "ftp://127.0.0.1/x"])
    def test_redirect_to_nowhere_is_refused(self, fetch, web, target):
        web.answers["/a"] = 302, {"Location": target, "Content-Length": 0}, b""
        assert "it redirects" in refused(fetch, web.url("/a"))

    def test_archive_called_an_encoding_by_its_server_is_kept_as_it_is(self, fetch, web, half):
        data = tgz(half)
        web.answers["/it"] = 200, {"Content-Length": len(data), "Content-Encoding": "gzip"}, data
        right = sha256(data).hexdigest()
        assert_is(fetch(web.url("/it"), sha256=right), fetch.folder, half)

    @pytest.mark.parametrize(("status", "word"), [(404, "address"), (403, "URL"), (500, "later")])
    def test_refusal_of_the_server_is_told_with_its_status(self, fetch, web, status, word):
        web.answers["/it"] = status, {"Content-Length": 0}, b""
        text = refused(fetch, web.url("/it"))
        assert f"HTTP status {status}" in text
        assert word in text

    def test_answer_that_breaks_off_is_refused(self, fetch, web, half):
        data = zipped(half)
        web.answers["/it"] = 200, {"Content-Length": len(data)}, data[:-100]
        assert "connection broke" in refused(fetch, web.url("/it"))

    def test_answer_longer_than_announced_is_refused(self, fetch, web, half):
        data = zipped(half)
        web.answers["/it"] = 200, {"Content-Length": len(data) - 100}, data
        assert f"{web.url('/it')} is damaged" in refused(fetch, web.url("/it"))

    def test_slow_answer_is_waited_for(self, fetch, web, half):
        data, pause = zipped(half), threading.Event()

        def drip():
            for start in range(0, len(data), len(data) // 5 + 1):
                pause.wait(0.02)
                yield data[start : start + len(data) // 5 + 1]

        web.answers["/it"] = 200, {"Content-Length": len(data)}, drip()
        assert_is(fetch(web.url("/it")), fetch.folder, half)

    def test_server_that_falls_silent_is_given_up(self, fetch, web, monkeypatch):
        go_on = threading.Event()

        def silent():
            yield b"PK"
            go_on.wait(30)

        web.answers["/it"] = 200, {"Content-Length": 100}, silent()
        monkeypatch.setattr(sources, "_TIMEOUTS_S", (0.2, 0.2))
        assert "timeout" in refused(fetch, web.url("/it"))
        go_on.set()

    def test_server_that_is_not_there_is_told(self, fetch, web):
        url = web.url("/it?token=secret")
        web.server_close()
        text = refused(fetch, url)
        assert "cannot be reached" in text
        assert "secret" not in text

    def test_wrong_checksum_names_both(self, fetch, web, half):
        data = zipped(half)
        web.answers["/it"] = whole(data)
        text = refused(fetch, web.url("/it"), sha256="0" * 64)
        assert sha256(data).hexdigest() in text
        assert "0" * 64 in text

    def test_download_beyond_the_limit_is_refused(self, fetch, web):
        web.answers["/announced"] = whole(b"x" * 5000)
        web.answers["/endless"] = 200, {}, (b"x" * 1000 for _ in range(100_000))
        for path in ("/announced", "/endless"):
            text = refused(fetch, web.url(path), limits=Limits(max_size_bytes=4000))
            assert "larger than 4,000 bytes" in text
            assert not (fetch.folder / "download").exists() or (
                (fetch.folder / "download").stat().st_size <= 4000
            )

    def test_credentials_reach_the_server_and_nobody_else(self, web, half, tmp_path):
        web.answers["/it"] = whole(zipped(half))
        url = web.url("/it?X-Signature=s3cret", credentials="zoe:pa55@")
        told = Listener()
        pushed = push(url, tmp_path / "base", progress=told)
        assert "Authorization" in web.asked[0][1]
        assert "s3cret" in web.asked[0][0]
        everywhere = (pushed.path / MANIFEST_PATH).read_text() + repr(told.__dict__)
        web.answers["/it"] = 404, {"Content-Length": 0}, b""
        with pytest.raises(PushRefused) as caught:
            push(url, tmp_path / "base")
        for secret in ("zoe", "pa55", "s3cret"):
            assert secret not in everywhere + str(caught.value)


@pytest.fixture
def store():
    """A store in memory, emptied around each test."""
    fs = fsspec.filesystem("memory")
    fs.rm("/", recursive=True)
    yield fs
    fs.rm("/", recursive=True)


def upload(fs, folder, path):
    for name, data in tree(folder).items():
        fs.pipe_file(f"{path}/{name}", data)


class TestObjectStores:
    def test_folder_is_downloaded(self, fetch, store, half):
        upload(store, half, "/bucket/model")
        told = Listener()
        assert_is(fetch("memory://bucket/model", told), fetch.folder, half)
        total = sum(map(len, tree(half).values()))
        assert told.counts[-1] == (total, total)

    def test_highest_version_is_downloaded_alone(self, fetch, store, models):
        upload(store, models / "half_plus_two", "/bucket/half")
        expected = models / "half_plus_two" / "2"
        assert_is(fetch("memory://bucket/half/"), fetch.folder, expected)
        assert_is(fetch("memory://bucket/half", version=1), fetch.folder, expected.parent / "1")

    def test_archive_is_downloaded_and_unpacked(self, fetch, store, half):
        data = tgz(half)
        store.pipe_file("/bucket/it.bin", data)
        right = sha256(data).hexdigest()
        assert_is(fetch("memory://bucket/it.bin", sha256=right), fetch.folder, half)
        assert "SHA-256" in refused(fetch, "memory://bucket/it.bin", sha256="0" * 64)

    def test_nothing_there_is_refused(self, fetch, store):
        assert "saved_model.pb: is missing" in refused(fetch, "memory://bucket/none")

    def test_limits_hold(self, fetch, store, half):
        upload(store, half, "/bucket/model")
        text = refused(fetch, "memory://bucket/model", limits=Limits(max_size_bytes=100))
        assert "more than 100 bytes" in text

    def test_evil_name_is_refused(self, fetch, store, half, monkeypatch):
        upload(store, half, "/bucket/model")
        real = type(store).find

        def find(self, path, **options):
            found = real(self, path, **options)
            return found | {"/bucket/model/../../evil": found["/bucket/model/saved_model.pb"]}

        monkeypatch.setattr(type(store), "find", find)
        assert "leads out" in refused(fetch, "memory://bucket/model")

    def test_object_that_changes_its_length_is_refused(self, fetch, store, half, monkeypatch):
        upload(store, half, "/bucket/model")
        real = type(store).find

        def find(self, path, **options):
            found = real(self, path, **options)
            found["/bucket/model/saved_model.pb"] |= {"size": 3}
            return found

        monkeypatch.setattr(type(store), "find", find)
        assert "has 3 bytes" in refused(fetch, "memory://bucket/model")

    def test_missing_package_is_said_with_its_command(self, fetch, monkeypatch):
        monkeypatch.setitem(sys.modules, "fsspec", None)
        text = refused(fetch, "gs://bucket/model")
        assert "pip install 'tfserve-kit[cloud]'" in text

    def test_unknown_kind_of_store_is_refused(self, fetch):
        assert "nosuch" in refused(fetch, "nosuch://bucket/model")

    def test_error_of_a_client_is_told_without_secrets(self, fetch, store, monkeypatch):
        class ClientError(Exception):
            pass

        def isfile(self, path):
            raise ClientError("denied: https://k:pa55@host/x?sig=s3cret")

        monkeypatch.setattr(type(store), "isfile", isfile)
        text = refused(fetch, "memory://bucket/model")
        assert "denied" in text
        assert "pa55" not in text
        assert "s3cret" not in text


def keras_zip(folder):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, json.dumps({}))
    (folder / "it.keras").write_bytes(out.getvalue())
    return folder / "it.keras"


class TestKeras:
    def test_kind_goes_by_content(self, tmp_path, half):
        assert sources._keras_suffix(keras_zip(tmp_path), Limits(), "it") == ".keras"
        (tmp_path / "h").write_bytes(b"\x89HDF\r\n\x1a\n1234")
        assert sources._keras_suffix(tmp_path / "h", Limits(), "it") == ".h5"
        for data in (zipped(half), tgz(half), gzip.compress(b""), b""):
            (tmp_path / "other").write_bytes(data)
            assert sources._keras_suffix(tmp_path / "other", Limits(), "it") is None

    def test_without_keras_the_command_is_said(self, fetch, tmp_path, monkeypatch):
        monkeypatch.setattr(sources, "find_spec", lambda name: None)
        assert "pip install 'tfserve-kit[embedded]'" in refused(fetch, keras_zip(tmp_path))

    def test_what_keras_says_is_told(self, fetch, tmp_path, monkeypatch):
        monkeypatch.setattr(sources, "find_spec", lambda name: True)
        monkeypatch.setattr(sources, "_EXPORT", "raise ValueError('no such layer')")
        assert "ValueError: no such layer" in refused(fetch, keras_zip(tmp_path))


SAVE = """
import sys, keras
inputs = keras.Input((3,), name="x")
outputs = keras.layers.Dense(2)(inputs)
keras.Model(inputs, outputs).save(sys.argv[1] + "/plain.keras")
keras.Model(inputs, outputs).save(sys.argv[1] + "/plain.h5")
keras.Model(inputs, outputs).save_weights(sys.argv[1] + "/plain.weights.h5")
outputs = keras.layers.Lambda(lambda x: x + 1)(inputs)
keras.Model(inputs, outputs).save(sys.argv[1] + "/lambda.keras")
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of Keras files."""
    folder = tmp_path_factory.mktemp("keras")
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", SAVE, str(folder)]
    subprocess.run(command, env=env, check=True, capture_output=True)
    return folder


@pytest.mark.tensorflow
class TestKerasExport:
    @pytest.mark.parametrize("name", ["plain.keras", "plain.h5"])
    def test_model_is_exported(self, fetch, saved, tmp_path, name):
        shutil.copy(saved / name, tmp_path / "model.bin")
        fetched = fetch(tmp_path / "model.bin")
        assert savedmodel.problems(fetched[0]) == []
        (shape,) = [spec.shape for spec in serving(fetched[0]).inputs.values()]
        assert shape == (None, 3)
        assert fetched[1].keys() == tree(fetched[0]).keys()

    @pytest.mark.parametrize("pack", [None, zipped, tgz])
    def test_model_that_mlflow_saved_is_exported(self, fetch, models, tmp_path, pack):
        place = models.parent / "mlflow" / "keras"
        if pack is not None:
            (tmp_path / "packed").write_bytes(pack(place))
            place = tmp_path / "packed"
        fetched = fetch(place)
        assert savedmodel.problems(fetched[0]) == []
        (shape,) = [spec.shape for spec in serving(fetched[0]).inputs.values()]
        assert shape == (None, 3)
        assert fetched[1].keys() == tree(fetched[0]).keys()

    def test_lambda_is_refused(self, fetch, saved):
        assert "Lambda layer" in refused(fetch, saved / "lambda.keras")

    def test_weights_alone_are_refused_with_what_to_do(self, fetch, saved):
        text = refused(fetch, saved / "plain.weights.h5")
        assert "holds weights, without the model that uses them" in text
        assert "load_weights" in text


def serving(root):
    return savedmodel.read_signatures(root)["serving_default"]
