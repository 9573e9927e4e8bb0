"""numpy's own files: what numpy wrote is read; what claims too much, or is none, is refused."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfserve_kit.clients.files import read_inputs
from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.evaluation.datasets import open_npz
from tfserve_kit.perf import payloads, samples
from tfserve_kit.pictures import files
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes, numpy_files

X = {"x": TensorSpec("x:0", dtypes.by_name("float"), (None,))}
SIGNATURE = Signature("serving_default", X, X, "tensorflow/serving/predict")


@given(
    hnp.arrays(st.sampled_from(["f4", "i8", "S3", "?"]), hnp.array_shapes(min_dims=0, min_side=0))
)
def test_what_numpy_saves_is_read(array):
    stream = io.BytesIO()
    np.save(stream, array)
    stream.seek(0)
    np.testing.assert_array_equal(numpy_files.read_array(stream), array)


def header(shape, dtype="<f4"):
    """Return an .npy file that claims a shape and holds nothing."""
    stream = io.BytesIO()
    about = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, about)
    return stream.getvalue()


CLAIM = header((1 << 40,))


def npz(file, **entries):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return file


def sparse(file):
    """Return a file with holes that has all that it claims, and takes no room."""
    with file.open("wb") as stream:
        stream.write(CLAIM)
        stream.truncate(len(CLAIM) + (1 << 42))
    return file


def written(file, content):
    file.write_bytes(content)
    return file


def deflated(file):
    """Return a small file that unpacks to 20 MB of zeros in all."""
    part = header((1 << 20,)) + bytes(4 << 20)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"x{number}.npy", part)
    return file


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: written(folder / "a.npy", CLAIM),
        lambda folder: sparse(folder / "a.npy"),
        lambda folder: npz(folder / "a.npz", x=CLAIM),
    ],
    ids=["nothing behind it", "holes behind it", "in an archive"],
)
def test_array_that_claims_terabytes_is_refused_by_file_and_limit(tmp_path, make):
    file = make(tmp_path)
    with pytest.raises(InvalidRequest) as caught:
        read_inputs([file], SIGNATURE, Preprocessing())
    assert str(file) in caught.value.message
    assert f"{numpy_files.MAX_BYTES:,}" in caught.value.message


def test_arrays_of_an_archive_count_together(tmp_path):
    file = deflated(tmp_path / "a.npz")
    assert len(numpy_files.read(file)) == 5
    with pytest.raises(ValueError, match="claims"):
        numpy_files.read(file, most=16 << 20)


def test_run_and_examples_that_claim_terabytes_are_refused(tmp_path):
    file = npz(tmp_path / "a.npz", samples=header((1 << 40,), "<i8"), about=b"", x=CLAIM, y=CLAIM)
    for read in (samples.read, open_npz):
        with pytest.raises(UsageError, match="claims") as caught:
            read(file)
        assert str(file) in caught.value.message


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"\x93NUMPY", CLAIM[:20], b"PK\x03\x04" + bytes(90)]
)
def test_what_is_no_file_of_numpys_is_refused(tmp_path, content):
    with pytest.raises(InvalidRequest, match="numpy"):
        read_inputs([written(tmp_path / "a.npz", content)], SIGNATURE, Preprocessing())
    with pytest.raises(UsageError, match="not a readable run"):
        samples.read(tmp_path / "a.npz")


def test_python_objects_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InvalidRequest, match="Object arrays"):
        read_inputs([tmp_path / "a.npy"], SIGNATURE, Preprocessing())


@pytest.mark.parametrize("name", ["a.json", "a.jpg"])
def test_file_that_is_too_large_for_a_request_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "_MAX_FILE_BYTES", 10)
    with pytest.raises(InvalidRequest, match="more than 10 bytes"):
        files.read_file(written(tmp_path / name, bytes(11)))
    assert files.read_file(written(tmp_path / name, bytes(10))) == bytes(10)


def test_line_without_end_of_a_log_is_refused_by_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(payloads, "_MOST_LINE_BYTES", 100)
    log = written(tmp_path / "log", b'{"at": 1, "inputs": [1]}\n' + b'{"at": 2, "inputs": [' * 9)
    with pytest.raises(InvalidRequest, match="line 2 has more than 100 bytes"):
        payloads.read_log(log, {"serving_default": SIGNATURE})


def test_json_nested_without_end_is_refused_by_its_file(tmp_path):
    file = written(tmp_path / "a.json", b'{"inputs":' + b"[" * 200_000)
    with pytest.raises(InvalidRequest, match=r"a\.json"):
        read_inputs([file], SIGNATURE, Preprocessing())
