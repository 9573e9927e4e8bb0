"""Pushing to object stores: the order of uploading, claims, left-overs, what failures leave."""

import json
import os
import shutil
import subprocess
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5

import fsspec
import psutil
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem

from tfserve_kit import deployment, processes
from tfserve_kit.cli.models import versions_command
from tfserve_kit.errors import PushRefused
from tfserve_kit.repository import Gate, object_store, push
from tfserve_kit.repository.manifest import MANIFEST_PATH, Manifest

BASE = "memory://bucket/models/half"
SHARD = "variables/variables.data-00000-of-00001"


class Recorder(MemoryFileSystem):
    """Remembers what is done to it, and fails where it is told to."""

    calls: list = []
    fail: dict = {}
    cachable = False

    def _did(self, what, path):
        path = path.partition("/models/half/")[2]
        type(self).calls.append((what, path))
        if (what, path) in self.fail:
            failure = self.fail[what, path]
            if callable(failure):
                failure()
            else:
                raise failure

    def put_file(self, lpath, rpath, **options):
        self._did("put", rpath)
        super().put_file(lpath, rpath, **options)

    def rm_file(self, path):
        self._did("rm", path)
        super().rm_file(path)

    def pipe_file(self, path, value, mode="overwrite", **options):
        self._did(mode, path)
        super().pipe_file(path, value, mode=mode, **options)


@pytest.fixture(autouse=True)
def store():
    fsspec.register_implementation("memory", Recorder, clobber=True)
    Recorder.calls, Recorder.fail = [], {}
    fs = Recorder()
    fs.rm("/", recursive=True)
    yield fs
    fs.rm("/", recursive=True)
    fsspec.register_implementation("memory", MemoryFileSystem, clobber=True)


@pytest.fixture
def source(models, tmp_path):
    folder = shutil.copytree(models / "half_plus_two" / "1", tmp_path / "source")
    (folder / "assets").mkdir(exist_ok=True)
    (folder / "assets" / "vocab").write_bytes(b"words")
    return folder


def there(fs):
    """Return every object below the base path: relative path to content."""
    start = "/bucket/models/half/"
    return {path.removeprefix(start): fs.cat_file(path) for path in fs.find(start)}


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refusal(source, **options):
    with pytest.raises(PushRefused) as caught:
        push(source, BASE, **options)
    return str(caught.value)


class TestSuccess:
    def test_version_is_uploaded_with_its_manifest_and_nothing_else_stays(self, store, source):
        pushed = push(source, BASE)
        assert (pushed.version, pushed.path, pushed.atomic) == (1, f"{BASE}/1", False)
        assert pushed.place == f"{BASE}/1"
        found = there(store)
        manifest = Manifest.from_json(found.pop(f"1/{MANIFEST_PATH.as_posix()}").decode())
        assert found == {f"1/{name}": data for name, data in tree(source).items()}
        assert manifest.files.keys() == tree(source).keys()
        assert pushed.size_bytes == sum(map(len, tree(source).values()))

    def test_manifest_goes_first_and_the_graph_last(self, store, source):
        push(source, BASE)
        puts = [path for what, path in store.calls if what == "put"]
        assert puts[0] == f"1/{MANIFEST_PATH.as_posix()}"
        assert puts[-1] == "1/saved_model.pb"
        assert len(puts) == len(tree(source)) + 1

    def test_number_is_claimed_before_anything_is_uploaded_and_freed_after(self, store, source):
        push(source, BASE)
        assert store.calls[0] == ("create", ".tfkit-claim-1")
        assert store.calls[-1] == ("rm", ".tfkit-claim-1")

    def test_numbers_follow_what_the_store_holds(self, store, source):
        assert [push(source, BASE).version for _ in range(3)] == [1, 2, 3]
        store.pipe_file("/bucket/models/half/0007/variables/x", b"half a version")
        store.pipe_file("/bucket/models/half/notes.txt", b"mine")
        assert push(source, BASE + "/").version == 8
        assert push(source, BASE, version=5).version == 5
        assert push(source, BASE, version="epoch").version > 1_700_000_000

    @pytest.mark.parametrize("number", [3, 4])
    def test_number_that_is_taken_is_refused_before_anything_is_read(self, store, number):
        store.pipe_file("/bucket/models/half/3/variables/x", b"half a version")
        store.pipe_file("/bucket/models/half/.tfkit-claim-4", claim())
        text = refusal("/nowhere", version=number)
        assert f"version {number} already exists in {BASE}" in text

    def test_gate_compares_with_the_version_in_service(self, store, source, models):
        push(source, BASE)
        with pytest.raises(PushRefused, match="the model is refused"):
            push(models / "mlp" / "1", BASE)
        assert push(models / "mlp" / "1", BASE, gate=Gate(allow_breaking=True)).version == 2

    def test_approval_sees_the_staged_copy_before_anything_is_uploaded(self, store, source):
        def approve(staged):
            assert (staged / "saved_model.pb").exists()
            raise PushRefused("not this one")

        assert "not this one" in refusal(source, approve=approve)
        assert there(store) == {}

    def test_file_url_is_a_folder(self, source, tmp_path):
        pushed = push(source, f"file://{tmp_path}/base")
        assert pushed.path == tmp_path / "base" / "1"
        assert pushed.atomic

    def test_line_that_pins_a_version_is_understood_by_the_deployment_file(self, tmp_path):
        text = f'[models.half]\nbase_path = "half"\n{object_store.pin_line(7)}\n'
        (tmp_path / "tfkit.toml").write_text(text)
        assert deployment.load(tmp_path / "tfkit.toml").models["half"].versions.specific == (7,)

    def test_credentials_in_the_url_are_not_shown(self, source):
        pushed = push(source, "memory://key:secret@bucket/models/half")
        assert "secret" not in str(pushed)


class TestVersions:
    def test_half_versions_are_told_from_whole_ones(self, store, source):
        push(source, BASE)
        store.pipe_file("/bucket/models/half/2/variables/x", b"x")
        store.pipe_file("/bucket/models/half/v3/saved_model.pb", b"x")
        assert object_store.remote_versions(BASE) == [
            (1, f"{BASE}/1", True),
            (2, f"{BASE}/2", False),
        ]
        assert object_store.remote_versions("memory://bucket/none") == []

    def test_command_lists_them(self, store, source):
        push(source, BASE)
        done = CliRunner().invoke(versions_command, [BASE, "--json"])
        (row,) = json.loads(done.stdout)["data"]
        assert row == {"version": 1, "state": "complete", "path": f"{BASE}/1"}


class TestFailures:
    @pytest.mark.parametrize("name", ["saved_model.pb", SHARD, MANIFEST_PATH.as_posix()])
    @pytest.mark.parametrize(
        "failure", [OSError("no answer"), ValueError("odd"), KeyboardInterrupt()]
    )
    def test_failed_upload_leaves_nothing(self, store, source, name, failure):
        push(source, BASE)
        before = there(store)
        Recorder.fail = {("put", f"2/{name}"): failure}
        expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else PushRefused
        with pytest.raises(expected):
            push(source, BASE)
        assert there(store) == before

    def test_file_that_arrives_cut_is_refused_before_the_graph_goes(self, store, source):
        real = MemoryFileSystem.put_file

        def cut(self, lpath, rpath, **options):
            real(self, lpath, rpath, **options)
            if rpath.endswith(SHARD):
                MemoryFileSystem.pipe_file(self, rpath, b"cut")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MemoryFileSystem, "put_file", cut)
            text = refusal(source)
        assert f"1/{SHARD} has 3 bytes" in text
        assert ("put", "1/saved_model.pb") not in store.calls
        assert there(store) == {}

    @pytest.mark.parametrize("right", [True, False])
    def test_checksums_that_a_store_lists_are_compared(self, source, monkeypatch, right):
        def find(self, path, **options):
            found = MemoryFileSystem.find(self, path, **options)
            if options.get("detail"):
                for each, info in found.items():
                    data = self.cat_file(each) + (b"" if right else b"x")
                    info["md5Hash"] = b64encode(md5(data).digest()).decode()
            return found

        monkeypatch.setattr(Recorder, "find", find, raising=False)
        if right:
            assert push(source, BASE).version == 1
        else:
            assert "MD5 differs" in refusal(source)

    def test_store_that_refuses_the_claim_is_told(self, store, source):
        Recorder.fail = {("create", ".tfkit-claim-1"): PermissionError("Forbidden")}
        assert f"{BASE}: Forbidden" in refusal(source)


class TestAtOnce:
    def test_pushes_at_once_get_numbers_of_their_own(self, store, source, tmp_path):
        with ThreadPoolExecutor(4) as pool:
            pushed = list(pool.map(lambda _: push(source, BASE).version, range(12)))
        assert sorted(pushed) == list(range(1, 13))
        assert not [name for name in there(store) if name.startswith(".")]

    def test_number_claimed_between_the_look_and_the_claim_leads_to_the_next(self, store, source):
        def quicker():
            Recorder.fail = {}
            MemoryFileSystem.pipe_file(store, "/bucket/models/half/.tfkit-claim-1", claim())

        Recorder.fail = {("create", ".tfkit-claim-1"): quicker}
        assert push(source, BASE).version == 2
        Recorder.fail = {
            ("create", ".tfkit-claim-9"): lambda: MemoryFileSystem.pipe_file(
                store, "/bucket/models/half/.tfkit-claim-9", claim()
            )
        }
        assert "version 9 already exists" in refusal(source, version=9)

    def test_store_without_exclusive_creation_serves_as_well(self, store, source, monkeypatch):
        def pipe_file(self, path, value, mode="overwrite", **options):
            if mode == "create":
                raise NotImplementedError
            MemoryFileSystem.pipe_file(self, path, value, **options)

        monkeypatch.setattr(Recorder, "pipe_file", pipe_file)
        assert [push(source, BASE).version for _ in range(2)] == [1, 2]

    def test_claim_that_another_push_overwrote_is_given_up(self, store, source, monkeypatch):
        def pipe_file(self, path, value, mode="overwrite", **options):
            stolen = claim() if path.endswith("claim-1") else value
            MemoryFileSystem.pipe_file(self, path, stolen, **options)

        monkeypatch.setattr(Recorder, "pipe_file", pipe_file)
        assert push(source, BASE).version == 2


def claim(**changes):
    """Return a claim of this very process, or one that is changed."""
    mine = {
        "pid": os.getpid(),
        "started_s": psutil.Process().create_time(),
        "host": processes.host(),
        "claimed_s": time.time(),
    }
    return json.dumps(mine | changes).encode()


@pytest.fixture
def dead():
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return {"pid": process.pid, "started_s": 1.0}


class TestLeftOvers:
    @staticmethod
    def leave(store, content, *, whole=False):
        store.pipe_file("/bucket/models/half/4/variables/x", b"x")
        if whole:
            store.pipe_file("/bucket/models/half/4/saved_model.pb", b"x")
        store.pipe_file("/bucket/models/half/.tfkit-claim-4", content)

    @pytest.mark.parametrize("kind", ["dead here", "old elsewhere"])
    def test_what_a_killed_push_left_is_removed_and_its_number_passed_over(
        self, store, source, dead, kind
    ):
        old = {"host": "elsewhere", "claimed_s": time.time() - 25 * 3600}
        self.leave(store, claim(**(dead if kind == "dead here" else old)))
        assert push(source, BASE).version == 5
        assert {name.partition("/")[0] for name in there(store)} == {"5"}

    @pytest.mark.parametrize("kind", ["alive here", "recent elsewhere", "damaged"])
    def test_what_may_be_under_way_stays(self, store, source, dead, kind):
        contents = {
            "alive here": claim(),
            "recent elsewhere": claim(**dead, host="elsewhere"),
            "damaged": b"?",
        }
        self.leave(store, contents[kind])
        assert push(source, BASE).version == 5
        assert {"4/variables/x", ".tfkit-claim-4"} <= there(store).keys()

    def test_of_a_whole_version_only_the_claim_goes(self, store, source, dead):
        self.leave(store, claim(**dead), whole=True)
        push(source, BASE, gate=Gate(allow_breaking=True))
        assert {"4/variables/x", "4/saved_model.pb"} <= there(store).keys()
        assert ".tfkit-claim-4" not in there(store)

    def test_half_version_that_nobody_claims_stays(self, store, source):
        store.pipe_file("/bucket/models/half/4/variables/x", b"x")
        push(source, BASE)
        assert "4/variables/x" in there(store)
