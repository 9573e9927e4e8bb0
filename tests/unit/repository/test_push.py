"""Pushing a version: it is fully there under its number, or nothing has changed."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tfserve_kit import processes
from tfserve_kit.errors import PushRefused
from tfserve_kit.repository import Gate, parse_version, push
from tfserve_kit.repository.manifest import MANIFEST_PATH, Manifest, differences, verify

SHARD = "variables/variables.data-00000-of-00001"


class Saboteur:
    """A progress that does something once a step has begun."""

    def __init__(self, text, act):
        self.text, self.act = text, act
        self.steps, self.notes, self.counts = [], [], []

    def step(self, text):
        self.steps.append(text)
        if self.text in text:
            self.act()

    def note(self, text):
        self.notes.append(text)

    def advance(self, done, total):
        self.counts.append((done, total))


class Fuse:
    """Stands for a function of the system, and fails when it is called for the nth time."""

    def __init__(self, real):
        self.real, self.left = real, 0

    def arm(self, nth):
        self.left = nth

    @property
    def blown(self):
        return self.left <= 0

    def __call__(self, *arguments, **options):
        self.left -= 1
        if not self.left:
            raise OSError(errno.EIO, "Input/output error")
        return self.real(*arguments, **options)


def listener():
    return Saboteur("", lambda: None)


@pytest.fixture
def source(models, tmp_path):
    return shutil.copytree(models / "half_plus_two" / "1", tmp_path / "source")


@pytest.fixture
def base(tmp_path):
    """Return a base path that holds version 3, and something that is no version."""
    base_path = tmp_path / "models" / "half"
    (base_path / "3").mkdir(parents=True)
    (base_path / "3" / "saved_model.pb").write_bytes(b"old")
    (base_path / "notes.txt").write_text("mine")
    return base_path


def tree(folder):
    """Return everything below a folder: relative path to content, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def model(folder):
    """Return the tree of a version without what a push adds to it."""
    found = tree(folder)
    del found[str(MANIFEST_PATH)]
    if not any(name.startswith("assets.extra/") for name in found):
        del found["assets.extra"]
    return found


def refusal(source, base_path, **options):
    with pytest.raises(PushRefused) as caught:
        push(source, base_path, **options)
    return str(caught.value)


class TestSuccess:
    @pytest.mark.parametrize(("choice", "number"), [("next", 4), (1, 1), (4, 4), (2**63 - 1,) * 2])
    def test_version_appears_under_its_number_beside_the_others(self, source, base, choice, number):
        before = tree(base)
        pushed = push(source, base, version=choice)
        size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
        assert (pushed.version, pushed.path) == (number, base / str(number))
        assert pushed.size_bytes == size
        assert model(pushed.path) == tree(source)
        shutil.rmtree(pushed.path)
        assert tree(base) == before

    def test_next_is_one_in_a_base_path_that_is_made_for_it(self, source, tmp_path):
        base_path = tmp_path / "new" / "deep" / "model"
        assert push(source, base_path).path == base_path / "1"

    def test_next_follows_the_highest_whatever_its_spelling(self, source, base):
        (base / "0012").touch()
        (base / "-20").mkdir()
        assert push(source, base).version == 13

    def test_next_is_one_where_only_negative_numbers_stand(self, source, tmp_path):
        (tmp_path / "base" / "-5").mkdir(parents=True)
        assert push(source, tmp_path / "base").version == 1

    def test_epoch_is_the_present_second(self, source, base):
        earliest = int(time.time())
        version = push(source, base, version="epoch").version
        assert earliest <= version <= time.time()

    def test_content_is_readable_for_a_server_of_another_user(self, source, base):
        for path in source.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        umask = os.umask(0o022)
        try:
            pushed = push(source, base).path
        finally:
            os.umask(umask)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in pushed.rglob("*") if path.is_file()}
        folders = [pushed, *(path for path in pushed.rglob("*") if path.is_dir())]
        assert modes == {0o644}
        assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o755}

    def test_links_are_followed_so_that_the_version_stands_alone(self, source, base, tmp_path):
        shutil.move(source / "variables", tmp_path / "elsewhere")
        (source / "variables").symlink_to(tmp_path / "elsewhere")
        (source / "extra.txt").symlink_to(tmp_path / "elsewhere" / "variables.index")
        wanted = {path.name: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()}
        pushed = push(source, base).path
        shutil.rmtree(tmp_path / "elsewhere")
        assert {path.name: path.read_bytes() for path in (pushed / "variables").iterdir()} == wanted
        assert (pushed / "extra.txt").read_bytes() == wanted["variables.index"]
        assert not any(path.is_symlink() for path in pushed.rglob("*"))

    def test_empty_folders_and_hidden_files_come_along(self, source, base):
        (source / "assets" / "deep" / "er").mkdir(parents=True)
        (source / ".hidden").write_text("x")
        assert model(push(source, base).path) == tree(source)

    def test_graph_with_another_tag_is_pushed_on_request(self, models, base):
        assert push(models / "othertag" / "1", base, gate=Gate(tag="train")).version == 4

    def test_progress_tells_steps_and_bytes(self, source, base):
        progress = listener()
        pushed = push(source, base, progress=progress)
        assert [step.split()[0] for step in progress.steps] == [
            "checking",
            "copying",
            "checking",
            "writing",
        ]
        done = [count for count, _ in progress.counts]
        assert done == sorted(set(done))
        assert {total for _, total in progress.counts} == {pushed.size_bytes}
        assert done[-1] == pushed.size_bytes

    @pytest.mark.parametrize("step", ["copying", "writing"])
    def test_staging_is_hidden_and_no_version_while_it_grows(self, source, base, step):
        seen = []
        progress = Saboteur(step, lambda: seen.extend(path.name for path in base.iterdir()))
        push(source, base, progress=progress)
        (staging,) = set(seen) - {"3", "notes.txt"}
        assert staging.startswith(".")
        assert parse_version(staging) is None


class TestRefusedVersions:
    @pytest.mark.parametrize("existing", ["7", "0007", "+7", " 7"])
    def test_existing_version_is_refused_under_any_spelling(self, source, base, existing):
        (base / existing).mkdir()
        before = tree(base)
        text = refusal(source, base, version=7)
        assert "version 7 already exists" in text
        assert str(base) in text
        assert "--version 8" in text
        assert tree(base) == before

    def test_plain_file_with_the_number_counts_as_existing(self, source, base):
        (base / "7").touch()
        assert "version 7 already exists" in refusal(source, base, version=7)

    @pytest.mark.parametrize("version", [0, -1, 2**63, True, 1.0, "7", "latest", "", None, [1]])
    def test_version_that_is_no_positive_int64_is_refused(self, source, base, version):
        before = tree(base)
        text = refusal(source, base, version=version)
        assert f"version {version!r} is not" in text
        assert "9223372036854775807" in text
        assert tree(base) == before

    def test_next_beyond_the_highest_number_is_refused(self, source, base):
        (base / str(2**63 - 1)).mkdir()
        assert f"{2**63} is not" in refusal(source, base)

    def test_refusal_removes_the_base_path_it_had_made(self, source, tmp_path):
        refusal(source, tmp_path / "new" / "deep", version=0)
        assert not (tmp_path / "new").exists()

    def test_refusal_keeps_a_base_path_that_was_there(self, source, tmp_path):
        (tmp_path / "there").mkdir()
        refusal(source, tmp_path / "there" / "new", version=0)
        assert tree(tmp_path / "there") == {}


def shorten(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def as_folder(file):
    file.unlink()
    file.mkdir()


DAMAGE = {
    "no graph": (lambda model: (model / "saved_model.pb").unlink(), "saved_model.pb"),
    "cut graph": (lambda model: shorten(model / "saved_model.pb"), "saved_model.pb"),
    "empty graph": (lambda model: (model / "saved_model.pb").write_bytes(b""), "0 bytes"),
    "no index": (lambda model: (model / "variables/variables.index").unlink(), "variables.index"),
    "cut index": (lambda model: shorten(model / "variables/variables.index"), "variables.index"),
    "no shard": (lambda model: (model / SHARD).unlink(), SHARD),
    "cut shard": (lambda model: shorten(model / SHARD), "224 bytes"),
    "no variables": (lambda model: shutil.rmtree(model / "variables"), "variables"),
    "no folder": (shutil.rmtree, "No such file or directory"),
    "dangling link": (lambda model: (model / "vocab").symlink_to("nowhere"), "vocab"),
    "pipe": (lambda model: os.mkfifo(model / "pipe"), "pipe"),
    "circle": (lambda model: (model / "circle").symlink_to(model), "circle"),
}


class TestRefusedModels:
    @pytest.mark.parametrize("damage", DAMAGE)
    def test_incomplete_model_is_refused_naming_what_is_wrong(self, source, base, damage):
        act, words = DAMAGE[damage]
        act(source)
        before = tree(base)
        assert words in refusal(source, base)
        assert tree(base) == before

    def test_file_where_the_manifest_has_its_folder_is_refused(self, source, base):
        (source / "assets.extra").write_text("mine")
        assert "rename assets.extra" in refusal(source, base)

    def test_other_tag_is_refused_naming_both(self, models, base):
        text = refusal(models / "othertag" / "1", base)
        assert "'serve'" in text
        assert "train" in text

    def test_nothing_is_made_for_an_incomplete_model(self, source, tmp_path):
        (source / "saved_model.pb").unlink()
        refusal(source, tmp_path / "new")
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("inside", [".", "versions", "variables/deep"])
    def test_base_path_within_the_model_is_refused(self, source, inside):
        before = tree(source)
        assert "inside the model" in refusal(source, source / inside)
        assert tree(source) == before


def test_content_is_on_disk_before_the_version_is_seen_and_its_name_after(
    source, base, monkeypatch
):
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append((os.fstat(descriptor).st_ino, (base / "4").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    pushed = push(source, base).path
    content = {path.stat().st_ino for path in (pushed, *pushed.rglob("*"))}
    assert {number for number, visible in synced if not visible} == content
    assert synced[-1] == (base.stat().st_ino, True)


class TestFailures:
    def test_file_in_place_of_the_base_path_is_refused(self, source, tmp_path):
        (tmp_path / "file").write_text("mine")
        text = refusal(source, tmp_path / "file")
        assert str(tmp_path / "file") in text
        assert "give a folder" in text
        assert (tmp_path / "file").read_text() == "mine"

    def test_file_in_place_of_a_parent_is_refused(self, source, tmp_path):
        (tmp_path / "file").write_text("mine")
        assert "give a folder" in refusal(source, tmp_path / "file" / "model")
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
    def test_folder_without_write_permission_is_refused(self, source, base):
        base.chmod(0o555)
        before = tree(base)
        try:
            assert "write to the base path" in refusal(source, base)
        finally:
            base.chmod(0o755)
        assert tree(base) == before

    def test_copy_that_is_damaged_on_the_way_is_refused(self, source, base):
        def damage():
            (staging,) = base.glob(".*")
            shorten(staging / "model" / SHARD)

        before = tree(base)
        assert "224 bytes" in refusal(source, base, progress=Saboteur("checking the copy", damage))
        assert tree(base) == before

    @staticmethod
    def taker(base, number):
        def take():
            (base / number).mkdir()
            (base / number / "saved_model.pb").write_bytes(b"theirs")

        return Saboteur("writing", take)

    def test_number_that_another_push_takes_meanwhile_is_refused(self, source, base):
        before = tree(base)
        text = refusal(source, base, version=4, progress=self.taker(base, "4"))
        assert "version 4 already exists" in text
        assert tree(base) == before | {"4": None, "4/saved_model.pb": b"theirs"}

    def test_next_number_that_another_push_takes_meanwhile_leads_to_the_one_after(
        self, source, base
    ):
        pushed = push(source, base, progress=self.taker(base, "4"))
        assert pushed.version == 5
        assert (base / "4" / "saved_model.pb").read_bytes() == b"theirs"

    def test_name_lost_between_the_look_and_the_rename_is_looked_for_again(
        self, source, base, monkeypatch
    ):
        real, lost = os.rename, []

        def late(staging, target, **folders):
            if not lost:
                lost.append(target)
                (base / target / "theirs").mkdir(parents=True)
            real(staging, target, **folders)

        monkeypatch.setattr(os, "rename", late)
        assert push(source, base).version == 5
        assert [Path(path).name for path in lost] == ["4"]

    def test_pushes_at_once_get_numbers_of_their_own(self, source, base):
        with ThreadPoolExecutor(8) as pool:
            pushed = list(pool.map(lambda _: push(source, base), range(24)))
        assert sorted(each.version for each in pushed) == list(range(4, 28))
        assert not list(base.glob(".*"))

    def test_epochs_of_one_second_get_numbers_of_their_own(self, source, base):
        numbers = [push(source, base, version="epoch").version for _ in range(3)]
        assert len(set(numbers)) == 3

    @pytest.mark.parametrize("step", ["checking", "copying", "checking the copy", "writing"])
    def test_interrupt_leaves_nothing_behind(self, source, tmp_path, step):
        def interrupt():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            push(source, tmp_path / "new" / "model", progress=Saboteur(step, interrupt))
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("call", ["fsync", "rename", "open", "mkdir"])
    def test_failure_of_any_call_leaves_nothing_behind(self, source, base, monkeypatch, call):
        before, fuse = tree(base), Fuse(getattr(os, call))
        monkeypatch.setattr(os, call, fuse)
        for nth in range(1, 100):
            fuse.arm(nth)
            try:
                push(source, base)
                break
            except PushRefused as error:
                text = str(error)
            assert text.startswith(f"cannot push to {base}: Input/output error\n"), text
            assert tree(base) == before, f"{call} number {nth} failed"
        assert nth > 1
        assert not fuse.blown
        assert model(base / "4") == tree(source)


class TestManifest:
    def test_it_tells_every_file_as_it_is(self, source, base):
        pushed = push(source, base).path
        manifest = Manifest.read(pushed)
        assert manifest.files.keys() == {n for n, data in tree(source).items() if data is not None}
        assert manifest.source == str(source)
        assert differences(pushed, manifest) == []

    @pytest.mark.parametrize(
        ("act", "words"),
        [
            (lambda version: shorten(version / SHARD), "bytes, was pushed with"),
            (lambda version: flip(version / SHARD), "SHA-256 differs"),
            (lambda version: (version / SHARD).unlink(), "is missing"),
            (lambda version: (version / "more").touch(), "was not there"),
            (lambda version: as_folder(version / SHARD), "cannot be read"),
        ],
    )
    def test_every_change_is_noticed_later(self, source, base, act, words):
        pushed = push(source, base).path
        act(pushed)
        (problem,) = differences(pushed, Manifest.read(pushed))
        assert words in str(problem)

    def test_pushed_version_can_be_pushed_on(self, source, base, tmp_path):
        first = push(source, base).path
        again = push(first, tmp_path / "other").path
        assert Manifest.read(again).files == Manifest.read(first).files
        assert Manifest.read(again).source == str(first)

    def test_pushed_version_that_was_damaged_since_is_not_pushed_on(self, source, base, tmp_path):
        first = push(source, base).path
        flip(first / SHARD)
        assert SHARD in refusal(first, tmp_path / "other")

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1}', "\x00"])
    def test_damaged_manifest_is_refused_and_can_be_removed(self, source, base, tmp_path, text):
        first = push(source, base).path
        (first / MANIFEST_PATH).write_text(text)
        assert str(MANIFEST_PATH) in refusal(first, tmp_path / "other")
        (first / MANIFEST_PATH).unlink()
        assert push(first, tmp_path / "other").version == 1


class TestManyFiles:
    """Beyond some number, files are synced together instead of one by one."""

    @pytest.fixture
    def crowded(self, source):
        assets = source / "assets"
        assets.mkdir(exist_ok=True)
        for number in range(80):
            (assets / f"{number}.txt").write_bytes(b"x" * number)
        return source

    def test_every_file_arrives(self, crowded, base):
        assert model(push(crowded, base).path) == tree(crowded)

    def test_they_are_synced_at_once(self, crowded, base, monkeypatch):
        synced = []
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd) or fsync(fd))
        push(crowded, base)
        assert len(synced) < 10

    def test_file_that_cannot_be_written_leaves_nothing_behind(self, crowded, base, monkeypatch):
        before, fuse = tree(base), Fuse(os.write)
        monkeypatch.setattr(os, "write", fuse)
        fuse.arm(70)
        with pytest.raises(PushRefused):
            push(crowded, base)
        assert tree(base) == before


@pytest.fixture
def small_disk():
    """Return a folder on a file system of 64 KiB, and a function that makes it read-only."""
    # Not below tmp_path: a mount that an aborted run leaves behind must not be in pytest's way.
    disk = Path(tempfile.mkdtemp(prefix="tfkit-small-disk-"))

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tfkit-test", str(disk)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = mount("size=64k").stderr if shutil.which("mount") else "there is no mount command"
    if refused:
        disk.rmdir()
        pytest.skip(f"no small file system can be made here: {refused.strip()}")
    yield disk, lambda: mount("remount,ro")
    subprocess.run(["umount", str(disk)], check=True)
    disk.rmdir()


class TestDisk:
    def test_full_disk_leaves_nothing_behind(self, source, small_disk):
        disk, _ = small_disk
        (source / "assets").mkdir()
        (source / "assets" / "big").write_bytes(b"x" * 200_000)
        text = refusal(source, disk / "new" / "model")
        assert "No space left" in text
        assert "free some space" in text
        assert tree(disk) == {}

    def test_sparse_files_are_refused_before_they_fill_the_disk(self, source, base):
        claimed = 1 << 42
        (source / "assets").mkdir()
        for name in "abcdefgh":
            (source / "assets" / name).touch()
            os.truncate(source / "assets" / name, claimed)
        before = tree(base)
        text = refusal(source, base)
        size_bytes = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        assert f"takes {size_bytes:,} bytes" in text
        assert "are free" in text
        assert "free some space" in text
        assert tree(base) == before

    def test_archive_that_unpacks_to_more_than_is_free_is_refused(self, source, small_disk):
        disk, _ = small_disk
        (source / "assets").mkdir()
        (source / "assets" / "big").write_bytes(bytes(200_000))
        size_bytes = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        claims = {"zip": size_bytes, "gztar": 200_000}  # of all files; of one after the other
        for kind, claimed in claims.items():
            packed = shutil.make_archive(str(source.parent / "packed"), kind, source)
            text = refusal(packed, disk / "new" / "model")
            assert f"the model takes {claimed:,} bytes" in text
            assert "free some space" in text
            assert tree(disk) == {}

    def test_disk_is_full_only_for_what_does_not_fit(self, source, small_disk):
        disk, _ = small_disk
        assert push(source, disk / "model").version == 1

    def test_read_only_disk_is_refused(self, source, small_disk):
        disk, make_read_only = small_disk
        assert push(source, disk / "model").version == 1
        before = tree(disk)
        assert make_read_only().returncode == 0
        text = refusal(source, disk / "model")
        assert "Read-only" in text
        assert "writable file system" in text
        assert tree(disk) == before


class TestLeftOvers:
    """What a push leaves that was killed."""

    @staticmethod
    def staging(base, pid, started, host):
        folder = base / f".tfkit-staging-{pid}.{started}.{host}.abc123"
        (folder / "variables").mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(b"half")
        return folder

    @pytest.fixture
    def dead(self):
        """The pid of a process that has ended."""
        with subprocess.Popen(["true"]) as process:
            process.wait()
        return process.pid

    def test_next_push_removes_what_killed_ones_left(self, source, base, dead):
        own_start = round(psutil.Process().create_time() * 1000)
        gone = [
            self.staging(base, dead, 123, processes.host()),
            self.staging(base, os.getpid(), own_start - 5, processes.host()),  # the pid's last user
        ]
        pushed = push(source, base)
        assert not any(folder.exists() for folder in gone)
        assert tree(base).keys() >= {"3", "3/saved_model.pb", str(pushed.version)}

    def test_pushes_under_way_and_those_of_others_are_left_alone(self, source, base, dead):
        own_start = round(psutil.Process().create_time() * 1000)
        kept = [
            self.staging(base, os.getpid(), own_start, processes.host()),
            self.staging(base, dead, 123, "another.host"),
            self.staging(base, "x", 123, processes.host()),
        ]
        push(source, base)
        assert all((folder / "saved_model.pb").exists() for folder in kept)

    def test_a_push_that_is_killed_is_cleaned_up_by_the_next_one(self, source, base):
        code = (
            "import os, signal, sys; from pathlib import Path\n"
            "from tfserve_kit.repository import push\n"
            "class Killer:\n"
            "    def step(self, text):\n"
            "        if 'writing' in text: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    def note(self, text): pass\n"
            "    def advance(self, done, total): pass\n"
            "push(Path(sys.argv[1]), Path(sys.argv[2]), progress=Killer())\n"
        )
        done = subprocess.run([sys.executable, "-c", code, source, base], check=False)
        assert done.returncode == -signal.SIGKILL
        assert len(list(base.glob(".tfkit-staging-*"))) == 1
        assert push(source, base).version == 4
        assert not list(base.glob(".*"))


def test_version_is_verified_against_its_manifest_or_nothing_is_told(tmp_path, models):
    pushed = push(models / "half_plus_two" / "1", tmp_path / "base")
    manifest, found = verify(pushed.path)
    assert manifest is not None and found == []
    (pushed.path / "saved_model.pb").write_bytes(b"other")
    assert [each.path for each in verify(pushed.path)[1]] == ["saved_model.pb"]
    (pushed.path / MANIFEST_PATH).write_text("{")
    assert [each.path for each in verify(pushed.path)[1]] == ["manifest"]
    (pushed.path / MANIFEST_PATH).unlink()
    assert verify(pushed.path) == (None, [])
