"""The commands of pages of the documentation, run word for word from top to bottom."""

import shutil
from pathlib import Path

import pytest

from tests.system import pages
from tests.system.shell import commands

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = pytest.mark.tensorflow


def run_page(shell, name):
    for argv in commands((DOCS / name).read_text("utf-8")):
        shell.run(argv)


def test_commands_of_the_docker_page_work(shell, docker_image):
    shell.env["TFKIT_IMAGE"] = docker_image
    shell.run(["tfkit", "push-model", "exported_model", "--model", "digits"])
    run_page(shell, "docker.md")


def test_commands_of_the_embedded_page_work(shell):
    shell.run(["tfkit", "push-model", "exported_model", "--model", "digits"])
    run_page(shell, "embedded.md")


def test_commands_of_the_native_page_work(shell, require):
    binary = shell.env.get("TFKIT_TEST_MODEL_SERVER")
    if not binary:
        require("native", "TFKIT_TEST_MODEL_SERVER names no tensorflow_model_server")
    shell.env["TFKIT_MODEL_SERVER"] = binary
    shell.run(["tfkit", "push-model", "exported_model", "--model", "digits"])
    run_page(shell, "native.md")


@pytest.mark.parametrize("page", ["push-model.md", "inspect.md", "warmup.md"])
def test_commands_of_the_pages_about_pushing_work(shell, page):
    run_page(shell, page)


@pytest.mark.parametrize("page", ["pictures.md", "evaluate.md"])
def test_commands_of_the_pages_about_using_a_model_work(shell, page):
    shutil.copytree(DOCS.parent / "data" / "digits", shell.folder / "data" / "digits")
    for picture in (DOCS.parent / "data" / "digits" / "jpeg").iterdir():
        label = picture.stem.rpartition("-")[2]
        (shell.folder / "photos" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, shell.folder / "photos" / label)
    shell.run(["tfkit", "push-model", "exported_model", "--model", "digits"])
    shell.run(["tfkit", "serve", "--model", "digits=models/digits", "--detach"])
    run_page(shell, page)


def test_page_about_tls_leads_from_nothing_to_a_server_that_wants_certificates(shell):
    shell.run(["tfkit", "push-model", "exported_model", "--model", "digits"])
    pages.run(DOCS / "tls.md", shell)
