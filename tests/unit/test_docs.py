"""The generated reference pages say what the code says."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["api.md", "cli.md", "spec.md", "flags.md", "exit-codes.md", "lint.md", "embedded.md"]
)
def test_reference_page_equals_what_the_code_generates(name):
    assert (ROOT / "docs" / name).read_text() == _generator().PAGES[name](), "run `make docs`"


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
    ],
)
def test_local_links_lead_to_files(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not missing


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_package_and_of_tests_are_there(page):
    text = page.read_text("utf-8")
    names = set(re.findall(r"\btfserve_kit(?:\.[a-z_]\w*)+", text))
    assert [name for name in names if not _is_there(name)] == []
    files = set(re.findall(r"\btests/[\w/]+\.py", text))
    assert [file for file in files if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_site_leads_to_every_page(page):
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    assert re.search(rf"\s{page.relative_to(ROOT)}$", navigation, re.MULTILINE), (
        "name the page in `nav` of mkdocs.yml"
    )


def _is_there(name):
    """Say whether there is such a module, or such a name in its parent."""
    parent, _, last = name.rpartition(".")
    try:
        found = importlib.import_module(parent)
    except ModuleNotFoundError:
        return False
    return hasattr(found, last) or importlib.util.find_spec(name) is not None


def test_the_picture_shows_the_commands_of_its_script():
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs" / "picture.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    picture = (ROOT / "docs" / "picture.svg").read_text("utf-8")
    assert [command for command in script.COMMANDS if f"</tspan> {command}<" not in picture] == []
    assert "docs/picture.svg" in (ROOT / "README.md").read_text("utf-8")
