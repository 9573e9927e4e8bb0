"""`tfkit lint` and `tfkit doctor`: exit codes, JSON and what a person reads."""

import shutil
from typing import get_args

import pytest

from tfserve_kit.deployment.lint import RULES
from tfserve_kit.deployment.spec import EngineName
from tfserve_kit.engines import registry


@pytest.fixture
def base_path(models, tmp_path):
    return shutil.copytree(models / "half_plus_two", tmp_path / "half")


# lint


def test_good_deployment_passes(tfkit, base_path):
    done = tfkit("lint", "--model", f"half={base_path}", "--strict")
    assert (done.code, done.out, done.err) == (0, "Nothing found.\n", "")


def test_good_deployment_has_an_empty_list_as_json(tfkit, base_path):
    done = tfkit("lint", "--model", f"half={base_path}", "--json")
    assert (done.code, done.data) == (0, [])


def test_error_fails_with_the_code_of_a_bad_deployment(tfkit, tmp_path):
    done = tfkit("lint", "--model", f"half={tmp_path / 'none'}")
    assert done.code == 3
    header, row = done.out.splitlines()
    assert header.split() == ["SEVERITY", "WHERE", "WHAT", "REMEDY"]
    assert row.split()[:2] == ["error", "models.half.base_path"]
    assert f"{tmp_path / 'none'} cannot be read (No such file or directory)" in row


def test_findings_wider_than_the_terminal_are_blocks(tfkit, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    done = tfkit("lint", "--model", f"half={tmp_path / 'none'}")
    first, what, remedy = done.out.splitlines()
    assert first == "error: models.half.base_path"
    assert what == f"  {tmp_path / 'none'} cannot be read (No such file or directory)"
    assert remedy.startswith("  Try: store a version there: tfkit push-model SAVED_MODEL --to ")


def test_error_is_told_as_json_and_fails(tfkit, tmp_path):
    done = tfkit("lint", "--model", f"half={tmp_path / 'none'}", "--json")
    assert done.code == 3
    (finding,) = done.data
    assert finding == {
        "severity": "error",
        "rule": "base-path-unreadable",
        "path": "models.half.base_path",
        "message": f"{tmp_path / 'none'} cannot be read (No such file or directory)",
        "remedy": f"store a version there: tfkit push-model SAVED_MODEL --to {tmp_path / 'none'}",
    }
    assert finding["rule"] in {rule.name for rule in RULES}


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--strict"], 3)])
def test_warnings_fail_only_when_they_count(tfkit, base_path, options, code):
    (base_path / "v3").mkdir()
    done = tfkit("lint", "--model", f"half={base_path}", *options)
    assert done.code == code
    assert "'v3'" in done.out


@pytest.mark.parametrize("options", [[], ["--strict"]])
def test_notes_never_fail(tfkit, options):
    done = tfkit("lint", "--model", "half=gs://bucket/m", "--json", *options)
    assert done.code == 0
    assert [each["severity"] for each in done.data] == ["info"]


def test_deployment_file_is_read(tfkit, base_path, tmp_path):
    file = tmp_path / "tfkit.toml"
    file.write_text('[models.half]\nbase_path = "half"\nlabels = {stable = 1}\n')
    done = tfkit("lint", "--json")
    assert done.code == 3
    assert [each["path"] for each in done.data] == ["models.half.labels.stable"]


def test_deployment_that_cannot_be_read_is_no_finding(tfkit):
    assert tfkit("lint").code == 2
    done = tfkit("lint", "--model", "half=x", "--config", "y")
    assert done.code == 2


def test_broken_template_fails(tfkit, base_path, tmp_path):
    (tmp_path / "model_config.txt.j2").write_text("{{ nothing }}")
    done = tfkit("lint", "--model", f"half={base_path}", "--templates", tmp_path)
    assert done.code == 3
    assert "template model_config.txt.j2" in done.err


def test_serve_is_stopped_by_an_error_and_told_of_a_warning(tfkit, base_path, fake_binary):
    (base_path / "v3").mkdir()
    (base_path / "2" / "saved_model.pb").write_bytes(b"")
    serve = ("serve", "--engine", "native", "--binary", fake_binary("exit:3"),
             "--grpc-port", 0, "--rest-port", 0, "--model", f"half={base_path}")  # fmt: skip
    stopped = tfkit(*serve)
    assert stopped.code == 3
    assert "models.half.base_path: version 2 in " in stopped.err
    shutil.rmtree(base_path / "2")
    started = tfkit(*serve)
    assert started.code == 5
    assert "'v3' in " in started.err


# doctor


def test_doctor_passes_where_an_engine_can_run(tfkit, fake_binary):
    done = tfkit("doctor", "--json", "--binary", fake_binary("exit:0"))
    assert done.code == 0
    checks = {each["check"]: each for each in done.data}
    assert checks["native"]["outcome"] == "ok"
    assert set(checks["native"]) == {"check", "outcome", "found", "remedy"}


def test_doctor_shows_a_table(tfkit, fake_binary):
    lines = tfkit("doctor", "--binary", fake_binary("exit:0")).out.splitlines()
    assert lines[0].split() == ["CHECK", "OUTCOME", "FOUND", "REMEDY"]
    assert any(line.startswith("native") for line in lines)


def test_doctor_fails_where_no_engine_can_run(tfkit, monkeypatch):
    monkeypatch.setattr("tfserve_kit.doctor.can_serve", lambda checks: False)
    done = tfkit("doctor", "--json")
    assert done.code == 4
    assert {"docker", "native", "embedded"} <= {each["check"] for each in done.data}


def test_doctor_does_without_a_deployment_file_that_is_not_valid(tfkit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tfkit.toml").write_text("models")
    done = tfkit("doctor", "--json")
    assert done.code in {0, 4} and done.data
    assert "tfkit.toml is not valid, so it does not count" in done.err
    assert tfkit("doctor", "--config", tmp_path / "tfkit.toml").code == 3


# Engines


def test_help_of_engine_names_every_engine_that_a_deployment_may_name(tfkit):
    names = [each.name for each in registry.engines()]
    assert set(get_args(EngineName)) == {"auto", *names}
    assert f"--engine {'|'.join(['auto', *names])}" in tfkit("serve", "--help").out
