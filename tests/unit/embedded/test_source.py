"""Which versions a model's policy asks for, from what is on disk."""

import pytest

from tfserve_kit import protos
from tfserve_kit.embedded import manager
from tfserve_kit.embedded.status import Code, ServingError


def config(base_path, policy="", name="m"):
    text = f'name: "{name}" base_path: "{base_path}" model_version_policy {{ {policy} }}'
    return protos.from_text("ModelConfig", text)


@pytest.fixture
def base(tmp_path):
    for name in ("1", "2", "10", "v3", ".tfkit-staging-x", "4.tmp"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", {10}),
        ("latest {}", {10}),
        ("latest { num_versions: 0 }", {10}),
        ("latest { num_versions: 1 }", {10}),
        ("latest { num_versions: 2 }", {2, 10}),
        ("latest { num_versions: 9 }", {1, 2, 10}),
        ("all {}", {1, 2, 10}),
        ("specific { versions: 1 }", {1}),
        ("specific { versions: 10 versions: 2 }", {2, 10}),
        ("specific { versions: 2 versions: 7 }", {2}),
        ("specific { versions: 7 }", set()),
        ("specific {}", set()),
    ],
)
def test_policy_asks_for_the_versions(base, policy, expected):
    assert manager.aspired_versions(config(base, policy)) == {n: base / str(n) for n in expected}


def test_no_policy_at_all_asks_for_the_highest_by_number_not_by_name(base):
    message = protos.ModelConfig(name="m", base_path=str(base))
    assert set(manager.aspired_versions(message)) == {10}


def test_leading_zeros_name_the_directory_that_is_there(tmp_path):
    (tmp_path / "007").mkdir()
    assert manager.aspired_versions(config(tmp_path)) == {7: tmp_path / "007"}


@pytest.mark.parametrize("prefix", ["file://", "file://localhost"])
def test_scheme_of_files_is_a_path_of_this_machine(base, prefix):
    assert manager.aspired_versions(config(f"{prefix}{base}")) == {10: base / "10"}


@pytest.mark.parametrize("path", ["gs://bucket/m", "file:///nowhere/at/all", "s3://b"])
def test_other_schemes_lead_nowhere(path):
    with pytest.raises(ServingError) as caught:
        manager.aspired_versions(config(path))
    assert caught.value.code is Code.NOT_FOUND
    assert f"Could not find base path {path} for servable m" in caught.value.message


def test_empty_base_path_asks_for_nothing(tmp_path):
    assert manager.aspired_versions(config(tmp_path)) == {}


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_base_path_that_cannot_be_listed_is_not_found(tmp_path, kind):
    path = tmp_path / "gone"
    if kind == "file":
        path.write_text("")
    with pytest.raises(ServingError) as caught:
        manager.aspired_versions(config(path))
    assert caught.value.code is Code.NOT_FOUND
    assert caught.value.message == (
        f"Could not find base path {path} for servable m with error NOT_FOUND: {path} not found"
    )


def test_version_that_is_a_directory_may_be_loaded(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    manager.check_directory(tmp_path, "{s}")
    manager.check_directory(tmp_path / "link", "{s}")


@pytest.mark.parametrize(
    ("kind", "code", "end"),
    [
        ("file", Code.FAILED_PRECONDITION, "; Not a directory"),
        ("dangling link", Code.NOT_FOUND, " not found"),
        ("nothing", Code.NOT_FOUND, " not found"),
    ],
)
def test_version_that_is_no_directory_is_refused_in_the_official_words(tmp_path, kind, code, end):
    path = tmp_path / "7"
    if kind == "file":
        path.write_text("")
    if kind == "dangling link":
        path.symlink_to(tmp_path / "gone")
    with pytest.raises(ServingError) as caught:
        manager.check_directory(path, "{name: m version: 7}")
    assert caught.value.code is code
    assert caught.value.message == (
        "Error while attempting to reserve resources to load servable {name: m version: 7}: "
        f"{path}{end}"
    )
