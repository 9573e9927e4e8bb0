"""The commands of pages of the documentation, run word for word from top to bottom."""

import re
import shutil
from pathlib import Path

import pytest

from tests.integration import images
from tests.system import pages
from tests.system.shell import Shell, blocks, commands

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = pytest.mark.tensorflow


def run_page(shell, name):
    for argv in commands((DOCS / name).read_text("utf-8")):
        shell.run(argv)


def test_commands_of_the_docker_page_work(shell, docker_image):
    shell.env["TFKIT_IMAGE"] = docker_image
    shell.run(["tfkit", "push-model", "exported_model", "--model", "digits"])
    run_page(shell, "docker.md")


def test_commands_of_the_swarm_page_work(shell, swarm):
    page = (DOCS / "swarm.md").read_text("utf-8")
    deployment = re.search(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]
    manager = f'[server]\nhost = "{swarm[0].address}"'
    (shell.folder / "tfkit.toml").write_text(
        deployment.replace("[server]", manager)
        + f'image = "{images.HAPROXY}"\n[docker]\nimage = "{images.MORTAL}"\n'
    )
    shell.env["DOCKER_HOST"] = swarm[0].url
    for name in ("TFKIT_GRPC_PORT", "TFKIT_REST_PORT"):
        del shell.env[name]
    shell.run(["tfkit", "push-model", "exported_model", "--model", "digits"])
    run_page(shell, "swarm.md")


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


def test_commands_of_the_page_about_scaling_work(shell):
    shell.run(["tfkit", "push-model", "exported_model", "--model", "digits"])
    shell.run(["tfkit", "serve", "--model", "digits=models/digits", "--detach"])
    for run in (DOCS.parent / "tests" / "data" / "runs").iterdir():
        shutil.copy(run, shell.folder / f"waits-{run.name}")
    pages.run(DOCS / "scaling.md", shell)


def test_commands_of_the_playground_page_serve_a_page(shell):
    shell.run(["tfkit", "push-model", "exported_model", "--model", "digits"])
    shell.run(["tfkit", "serve", "--model", "digits=models/digits", "--detach"])
    for argv in commands((DOCS / "playground.md").read_text("utf-8")):
        shell.run_until_ready_then_interrupt([*argv, "--port", "0"], "Playground: http://")


def test_page_about_tls_leads_from_nothing_to_a_server_that_wants_certificates(shell):
    shell.run(["tfkit", "push-model", "exported_model", "--model", "digits"])
    pages.run(DOCS / "tls.md", shell)


def test_page_about_monitoring_leads_from_a_model_to_what_watches_it(shell):
    shell.run(["tfkit", "push-model", "exported_model", "--model", "digits"])
    pages.run(DOCS / "monitoring.md", shell)


def test_commands_of_the_kubernetes_page_work(tmp_path, shell_env):
    """What needs a cluster is in `sh` blocks, which are not run."""
    page = (DOCS / "kubernetes.md").read_text("utf-8")
    (tmp_path / "tfkit.toml").write_text(blocks(page, "toml")[0])
    shell = Shell(tmp_path, shell_env)
    if not shutil.which("kubectl", path=shell_env["PATH"]):
        pytest.skip("there is no kubectl")
    run_page(shell, "kubernetes.md")
    assert {"base", "kserve"} <= {each.name for each in tmp_path.iterdir()}


def test_page_about_production_leads_from_a_container_to_kubernetes(shell):
    pages.run(DOCS / "production.md", shell)
