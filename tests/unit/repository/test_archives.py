"""Unpacking: whole models arrive; whatever is wrong with an archive, nothing lands outside."""

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from hashlib import sha256

import pytest
import zstandard

from tests.unit.repository.test_sources import refused, tree
from tfserve_kit.errors import PushRefused, UsageError
from tfserve_kit.repository import archives
from tfserve_kit.repository.intake import Limits, parse_size
from tfserve_kit.repository.manifest import File

FILES = {
    "saved_model.pb": b"graph" * 100,
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": bytes(range(256)) * 5000,
    "assets/vocab.txt": "ein Wörterbuch".encode(),
    "assets/empty": b"",
}


def zipped(files=FILES, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files=FILES, form=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files.items():
            add(archive, name, data)
    return out.getvalue()


def add(archive, name, data=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def tar_of(*members, form=tarfile.PAX_FORMAT):
    """Return a tar archive of members given as (name, data, fields)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data, fields in members:
            add(archive, name, data, **fields)
    return out.getvalue()


PACKED = {
    "zip": zipped,
    "stored zip": lambda: zipped(method=zipfile.ZIP_STORED),
    "tar": tarred,
    "gnu tar": lambda: tarred(form=tarfile.GNU_FORMAT),
    "ustar": lambda: tarred(form=tarfile.USTAR_FORMAT),
    "tar.gz": lambda: gzip.compress(tarred()),
    "tar.bz2": lambda: bz2.compress(tarred()),
    "tar.xz": lambda: lzma.compress(tarred()),
    "tar.xz of two streams": lambda: (
        lzma.compress(tarred()[:5000]) + bytes(8) + lzma.compress(tarred()[5000:])
    ),
    "tar.gz of two members": lambda: (
        gzip.compress(tarred()[:5000]) + gzip.compress(tarred()[5000:])
    ),
    "tar.zst": lambda: zstandard.ZstdCompressor().compress(tarred()),
}


@pytest.fixture
def unpack(tmp_path):
    """Unpack bytes in a folder whose surroundings must stay as they are."""
    around = tmp_path / "around"
    folder = around / "deep" / "inside"
    folder.mkdir(parents=True)
    (around / "canary").write_bytes(b"alive")
    (around / "deep" / "canary").write_bytes(b"alive")

    def act(data, **limits):
        file = tmp_path / "model.bin"
        file.write_bytes(data)
        shutil.rmtree(folder)
        folder.mkdir()
        try:
            return archives.unpack(file, folder, Limits(**limits))
        finally:
            outside = {str(path.relative_to(around)) for path in around.rglob("*")}
            outside = {name for name in outside if not name.startswith("deep/inside")}
            assert outside == {"canary", "deep", "deep/canary"}
            assert (around / "canary").read_bytes() == b"alive"
            assert (around / "deep" / "canary").read_bytes() == b"alive"

    act.folder = folder
    return act


class TestWhole:
    @pytest.mark.parametrize("form", PACKED)
    def test_every_file_arrives_with_its_checksum(self, unpack, form):
        files = unpack(PACKED[form]())
        assert tree(unpack.folder) == FILES
        assert files == {
            name: File(len(data), sha256(data).hexdigest()) for name, data in FILES.items()
        }

    def test_names_are_made_plain(self, unpack):
        assert set(unpack(tarred({"./a//b": b"1", "./c/./d": b"2"}))) == {"a/b", "c/d"}

    @pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    def test_long_names_of_tar_arrive(self, unpack, form):
        name = "/".join(["d" * 90] * 4) + "/" + "f" * 200
        assert set(unpack(tarred({name: b"x"}, form=form))) == {name}

    def test_names_that_differ_by_case_alone_are_two(self, unpack):
        assert set(unpack(zipped({"a": b"1", "A": b"2"}))) == {"a", "A"}

    @pytest.mark.parametrize("pack", [zipped, tarred])
    def test_what_macos_adds_is_left_out(self, unpack, pack):
        extra = {"__MACOSX/._a": b"x", "m/.DS_Store": b"x", "m/._saved_model.pb": b"x"}
        assert set(unpack(pack({"m/saved_model.pb": b"g"} | extra))) == {"m/saved_model.pb"}
        assert not (unpack.folder / "__MACOSX").exists()

    def test_modes_are_not_taken_over(self, unpack):
        unpack(tar_of(("run", b"#!/bin/sh", {"mode": 0o6777, "uid": 5, "gid": 5})))
        mode = (unpack.folder / "run").stat().st_mode
        assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR | stat.S_IXOTH)

    def test_kind_goes_by_content(self, tmp_path):
        for form, kind in {"zip": "zip", "tar": "tar", "tar.gz": "gzip", "tar.zst": "zstd"}.items():
            (tmp_path / "x.jpg").write_bytes(PACKED[form]())
            assert archives.kind(tmp_path / "x.jpg") == kind

    def test_other_files_are_refused(self, unpack):
        assert "it starts with b'hellohello" in refused(unpack, b"hello" * 300)
        assert "it is empty" in refused(unpack, b"")

    def test_missing_zstandard_is_said_with_its_command(self, unpack, monkeypatch):
        monkeypatch.setitem(sys.modules, "zstandard", None)
        assert "pip install 'tfserve-kit[zst]'" in refused(unpack, PACKED["tar.zst"]())


BAD_NAMES = {
    "../x": "leads out",
    "a/../../x": "leads out",
    "/abs": "absolute",
    "C:/windows/x": "absolute",
    "a\\..\\x": "backslash",
    "n" * 256: "too long",
    "/".join(["d" * 200] * 6): "too long",
    "/".join("d" * 40): "too deep",
}


class TestNames:
    @pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: name[:12])
    @pytest.mark.parametrize("pack", [zipped, tarred])
    def test_bad_name_is_refused(self, unpack, pack, name):
        text = refused(unpack, pack({name: b"x"}))
        assert BAD_NAMES[name] in text
        assert len(text) < 300
        assert tree(unpack.folder) == {}

    def test_nul_in_a_name_is_refused(self, unpack):
        assert "NUL" in refused(unpack, zipped({"axb": b""}).replace(b"axb", b"a\0b"))

    def test_name_that_is_not_utf_8_is_refused(self, unpack):
        assert "UTF-8" in refused(unpack, tar_of(("a\udcffb", b"x", {}), form=tarfile.GNU_FORMAT))

    def test_pax_path_counts_in_place_of_the_plain_one(self, unpack):
        evil = ("fine", b"x", {"pax_headers": {"path": "../evil"}})
        assert "leads out" in refused(unpack, tar_of(evil))

    @pytest.mark.parametrize("pack", [zipped, tarred])
    def test_name_that_occurs_twice_is_refused(self, unpack, pack):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pack({"a/b": b"1", "a//b": b"2"})
        assert "twice" in refused(unpack, data)

    @pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
    def test_file_and_folder_of_one_name_are_refused(self, unpack, names):
        refused(unpack, tarred(dict.fromkeys(names, b"x")))


LINKS = {
    "symlink out": ("l", b"", {"type": tarfile.SYMTYPE, "linkname": "../.."}),
    "symlink within": ("l", b"", {"type": tarfile.SYMTYPE, "linkname": "saved_model.pb"}),
    "hard link out": ("l", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),
    "device": ("l", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
    "fifo": ("l", b"", {"type": tarfile.FIFOTYPE}),
}


def zip_entry(name, mode, data=b"x"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, data)
    return out.getvalue()


class TestLinks:
    @pytest.mark.parametrize("link", LINKS)
    def test_link_or_device_in_tar_is_refused(self, unpack, link):
        then = ("l/evil", b"x", {})
        assert "'l' is a" in refused(unpack, tar_of(LINKS[link], then))
        assert not list(unpack.folder.iterdir())

    @pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
    def test_link_or_device_in_zip_is_refused(self, unpack, kind):
        data = zip_entry("l", kind | 0o777, b"/etc/passwd")
        assert "'l' is a link or a device" in refused(unpack, data)


def sparse():
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99999999"}
    return tar_of(("a", b"1\n0\n1\n" + bytes(506), {"pax_headers": headers}))


class TestDamage:
    @pytest.mark.parametrize("form", PACKED)
    def test_archive_that_is_cut_is_refused(self, unpack, form):
        data = PACKED[form]()
        for keep in (len(data) // 3, len(data) * 2 // 3):
            assert "damaged or incomplete" in refused(unpack, data[:keep])

    @pytest.mark.parametrize("form", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
    def test_archive_without_its_last_bytes_is_refused(self, unpack, form):
        assert "damaged or incomplete" in refused(unpack, PACKED[form]()[:-3])

    def test_tar_that_is_cut_between_two_files_is_refused(self, unpack):
        data = tarred()
        keep = data.rindex(b"assets/vocab.txt") // 512 * 512
        assert "ends too early" in refused(unpack, data[:keep])

    def test_wrong_checksum_in_zip_names_the_member(self, unpack):
        data = bytearray(zipped(method=zipfile.ZIP_STORED))
        at = data.index(b"graphgraph")
        data[at] ^= 1
        assert "'saved_model.pb'" in refused(unpack, bytes(data))

    def test_wrong_checksum_at_the_end_of_gzip_is_refused(self, unpack):
        data = bytearray(gzip.compress(tarred()))
        data[-6] ^= 1
        assert "CRC" in refused(unpack, bytes(data))

    def test_damaged_header_in_the_middle_of_tar_is_refused(self, unpack):
        data = bytearray(tarred())
        data[1024 + 100] ^= 1
        assert "checksum" in refused(unpack, bytes(data))

    def test_encrypted_zip_is_refused(self, unpack):
        data = bytearray(zipped({"a": b"secret"}))
        data[data.index(b"PK\1\2") + 8] |= 1
        assert "'a' is encrypted" in refused(unpack, bytes(data))

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_other_methods_of_zip_are_refused(self, unpack, method):
        assert "method" in refused(unpack, zipped(method=method))

    def test_size_that_a_zip_lies_about_is_noticed(self, unpack):
        data = bytearray(zipped({"a": b"x" * 100}))
        at = data.index(b"PK\1\2") + 24
        for lie in (99, 101, 2**31):
            data[at : at + 4] = struct.pack("<I", lie)
            refused(unpack, bytes(data))
            (unpack.folder / "a").unlink(missing_ok=True)

    def test_sparse_file_is_refused(self, unpack):
        assert "sparse" in refused(unpack, sparse())

    def test_gzip_of_something_else_is_refused(self, unpack):
        assert "damaged" in refused(unpack, gzip.compress(b"hello" * 500))

    def test_failure_of_the_file_system_is_not_taken_for_damage(self, unpack, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            unpack(zipped())


class TestLimits:
    @pytest.mark.parametrize("form", PACKED)
    def test_size_counts_as_it_comes(self, unpack, form):
        assert "--max-size" in refused(unpack, PACKED[form](), max_size_bytes=100_000)

    @pytest.mark.parametrize("pack", [zipped, tarred])
    def test_number_of_files_and_folders(self, unpack, pack):
        files = {f"d/{number}": b"" for number in range(10)}
        assert len(unpack(pack(files), max_files=11)) == 10
        assert "more than 11" in refused(unpack, pack(files | {"e": b""}), max_files=11)

    def test_ratio_counts_from_some_size_on(self, unpack):
        assert unpack(zipped({"zeros": bytes(10 << 20)}), max_ratio=10)
        text = refused(unpack, zipped({"more": bytes(20 << 20)}), max_ratio=10)
        assert "more than 10 times" in text

    def test_bytes_that_are_not_kept_count_as_well(self, unpack):
        data = gzip.compress(tarred({"._x": bytes(20 << 20)}))
        assert "more than 10 times" in refused(unpack, data, max_ratio=10)
        data = gzip.compress(tarred({}) + bytes(20 << 20))
        assert "more than 10 times" in refused(unpack, data, max_ratio=10)

    def test_header_without_end_is_refused(self, unpack):
        data = tar_of(("a", b"", {"pax_headers": {"comment": "c" * (2 << 20)}}))
        assert "header of" in refused(unpack, gzip.compress(data))

    @pytest.mark.parametrize(
        ("text", "size"),
        [("5", 5), ("2k", 2048), ("1MB", 1 << 20), ("64 GiB", 64 << 30), ("1T", 1 << 40)],
    )
    def test_sizes_are_read(self, text, size):
        assert parse_size(text) == size

    @pytest.mark.parametrize("text", ["", "-1", "1.5G", "G", "1X"])
    def test_other_sizes_are_refused(self, text):
        with pytest.raises(UsageError):
            parse_size(text)


def directory_of(entries):
    """Return a zip archive whose directory holds the entry of one file many times."""
    data = zipped({"a": b""})
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    directory = data[start:end] * entries
    tail = bytearray(data[end:])
    tail[12:16] = struct.pack("<I", len(directory))
    return data[:start] + directory + tail


ZEROS = {"a": bytes(100 << 20)}
BOMBS = {
    "zip": lambda: zipped(ZEROS),
    "tar.gz": lambda: gzip.compress(tarred(ZEROS)),
    "tar.bz2": lambda: bz2.compress(tarred(ZEROS)),
    "tar.xz": lambda: lzma.compress(tarred(ZEROS)),
    "tar.zst": lambda: zstandard.ZstdCompressor().compress(tarred(ZEROS)),
    "header": lambda: gzip.compress(
        tar_of(("a", b"", {"pax_headers": {"comment": "c" * (100 << 20)}}))
    ),
    "entries": lambda: directory_of(90_000),
    "too many entries": lambda: directory_of(1_000_000),
    "directory": lambda: directory_of(4_000_000),
}
MEASURE = """
import resource, sys
from pathlib import Path
from tfserve_kit.errors import PushRefused
from tfserve_kit.repository import archives
from tfserve_kit.repository.intake import Limits
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    archives.unpack(Path(sys.argv[1]), Path(sys.argv[2]), Limits())
    print("unpacked")
except PushRefused as refusal:
    print(refusal.message)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_stays_bounded(tmp_path, bomb):
    (tmp_path / "bomb").write_bytes(BOMBS[bomb]())
    (tmp_path / "folder").mkdir()
    command = [sys.executable, "-c", MEASURE, tmp_path / "bomb", tmp_path / "folder"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *_, used_mib = done.stdout.split()
    assert int(used_mib) < 300, done.stdout
    for path in (tmp_path / "folder").iterdir():
        path.unlink()


def evil():
    """Return archives made to do harm, whole in themselves."""
    outside = [("../x", b"x", {}), ("/tmp/x", b"x", {}), ("a/../../../x", b"x", {})]
    through = ("l/x", b"x", {})
    made = [tar_of(member) for member in outside]
    made += [tar_of(link, through) for link in LINKS.values()]
    made += [zipped({name: data}) for name, data, _ in outside]
    made += [zip_entry("l", stat.S_IFLNK | 0o777, b".."), sparse()]
    made.append(tar_of(("x", b"1", {"pax_headers": {"path": "/x", "size": "99999999999"}})))
    made.append(tar_of(("n" * 3000, b"1", {}), form=tarfile.GNU_FORMAT))
    made.append(tarred({f"{'d/' * depth}x": b"" for depth in range(60)}))
    return made


def mutated(data, dice):
    """Return data with some bytes changed, cut out, doubled or moved."""
    data = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        at, length = dice.randrange(len(data)), dice.choice((1, 2, 4, 30, 512))
        act = dice.randrange(5)
        if act == 0:
            data[at] = dice.randrange(256)
        elif act == 1:
            data[at : at + length] = dice.randbytes(length)
        elif act == 2 and len(data) > 2 * length:
            del data[at : at + length]
        elif act == 3:
            data[at:at] = data[at : at + length]
        else:
            data[at : at + length] = dice.choice((b"\0", b"\xff", b"7", b"/")) * length
    return bytes(data)


def test_mutated_archives_are_unpacked_or_refused(tmp_path):
    """A thousand of them: no other error, nothing outside, no link, nothing runnable."""
    dice = random.Random(20_260_131)
    small = FILES | {"variables/variables.data-00000-of-00001": bytes(range(256)) * 8}
    seeds = [zipped(small), zipped(small, zipfile.ZIP_STORED), tarred(small)]
    seeds += [pack(tarred(small)) for pack in (gzip.compress, bz2.compress, lzma.compress)]
    seeds += [zstandard.ZstdCompressor().compress(tarred(small)), *evil()]
    limits = Limits(max_size_bytes=50 << 20, max_files=1000)
    file, outcomes = tmp_path / "archive", {"unpacked": 0, "refused": 0}
    for number in range(1000):
        folder = tmp_path / "around" / str(number)
        folder.mkdir(parents=True)
        seed = seeds[number % len(seeds)]
        file.write_bytes(seed if number < len(seeds) else mutated(seed, dice))
        try:
            archives.unpack(file, folder, limits)
            outcomes["unpacked"] += 1
        except PushRefused:
            outcomes["refused"] += 1
    assert min(outcomes.values()) >= 20, outcomes
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "around"}
    assert {path.name for path in (tmp_path / "around").iterdir()} == set(map(str, range(1000)))
    for path in (tmp_path / "around").rglob("*"):
        mode = path.lstat().st_mode
        assert stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and not mode & 0o7111)
