"""What `mkdocs.yml` cannot say: the pages of the site are the repository's, at the same paths.

So every link between them works on the site as it does in a checkout. Other files that a page links
to (a template, the license) come along; a link that leads nowhere fails a strict build.
"""

import re
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "data/README.md",
         "tests/data/README.md", "docs/**/*.md", "examples/*/README.md")  # fmt: skip
_FENCE = re.compile(r"( *)(```\w*).*")
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the project's addresses from pyproject.toml, where they are known."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    config.site_url = urls.get("Documentation", "")
    config.repo_url = urls.get("Source")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace what mkdocs found in docs/ by the repository's pages and what they link to."""
    pages = sorted(page for pattern in PAGES for page in ROOT.glob(pattern))
    linked = {
        (page.parent / link).resolve()
        for page in pages
        for link in _LINK.findall(page.read_text("utf-8"))
    }
    others = {ROOT / "docs" / "site.css"} | {each for each in linked if each.is_file()}
    for found in [each for each in files if each.src_dir == config.docs_dir]:
        files.remove(found)
    for path in (*pages, *sorted(others - set(pages))):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Say in this dialect of Markdown what the pages say in that of repositories.

    Lists within lists are indented by four spaces, and a fence names nothing but its language.
    """
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # a menu of one entry
    lines, fence = [], None
    for line in markdown.splitlines():
        indent = line[: len(line) - len(line.lstrip())] if fence is None else fence
        if match := _FENCE.fullmatch(line):
            fence = match[1] if fence is None else None
        lines.append(indent + (match[1] + match[2] if match else line))
    return "\n".join(lines)
