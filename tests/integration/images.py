"""The image that tests run: the official one where it can be had, else a stand-in for it.

The stand-in is what our own `Dockerfile.embedded` builds. Three images stay in Docker (its base,
its dependencies, itself), and the wheels in build/ of the checkout; a change of the package
rebuilds only the last layers.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import google
import grpc
import typing_extensions

from tfserve_kit.engines import images
from tfserve_kit.engines.container import SERVING_IMAGE
from tfserve_kit.engines.images import PYTHON_IMAGE, Variant, files

STAND_IN = "tfkit-model-server:test"
DEPENDENCIES = "tfkit-model-server:test-dependencies"
BASE = "tfkit-base:bookworm-python"
MORTAL, HAPROXY = "tfkit-mortal-server:test", "tfkit-haproxy:test"
ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
REGISTRY_TIMEOUT_S = 5


class NoImage(Exception):
    """This machine cannot run or make an image; the text says why."""


def docker(*arguments, check=True, **options):
    """Run the docker command and return what it printed."""
    done = subprocess.run(
        ["docker", *map(str, arguments)], check=check, stdout=subprocess.PIPE, text=True, **options
    )
    return done.stdout.strip()


def image_under_test() -> str:
    """Return $TFKIT_TEST_IMAGE, else the official image, else the stand-in.

    Raises:
        NoImage: there is no Docker, or nothing to make the stand-in from.
    """
    require_docker()
    if given := os.environ.get("TFKIT_TEST_IMAGE"):
        return given
    return SERVING_IMAGE if _pulled(SERVING_IMAGE) else stand_in()


def require_docker() -> None:
    """Raise NoImage where no Docker answers."""
    if not shutil.which("docker"):
        raise NoImage("there is no docker command on PATH")
    try:
        docker("version", stderr=subprocess.PIPE)
    except subprocess.CalledProcessError as error:
        raise NoImage(error.stderr.strip()) from None


def remove_left_containers() -> None:
    """Remove the ended containers of test runs that were killed: they hold names and disk.

    Another run's that goes on beside this one ended lately.
    """
    template = '{{.ID}} {{.Label "tfkit.folder"}} {{.Status}}'
    ended = docker("ps", "--filter", "status=exited", "--filter", "label=tfkit.folder",
                   "--format", template)  # fmt: skip
    for line in ended.splitlines():
        container, folder, status = line.split(maxsplit=2)  # Exited (0) 3 hours ago
        is_recent = "second" in status or "minute" in status
        if not is_recent and Path(folder).is_relative_to(tempfile.gettempdir()):
            docker("rm", "--volumes", container)


def stand_in() -> str:
    """Return the name of the stand-in, made anew if the package has changed since.

    Raises:
        NoImage: there is no base image, and no debootstrap to make one.
    """
    with _alone():
        source = _source_hash()
        if _inspect(STAND_IN, '{{index .Config.Labels "tfkit.source"}}') == source:
            return STAND_IN
        base = _base()
        variant = Variant(base, embedded=True, wheels=_wheels(base))
        with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
            context = Path(scratch) / "context"
            images.render_context(None, context, variant)
            _build(context, DEPENDENCIES, "--target=dependencies")
            _build(context, STAND_IN, f"--label=tfkit.source={source}")
    return STAND_IN


def mortal() -> str:
    """Return an image of `mortal_server.py`, which SIGTERM kills as it does the official server.

    Raises:
        NoImage: as `stand_in`.
    """
    server = Path(__file__).with_name("mortal_server.py")
    with _alone(), tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        source = hashlib.sha256(server.read_bytes()).hexdigest() + _source_hash()
        if _inspect(MORTAL, '{{index .Config.Labels "tfkit.source"}}') == source:
            return MORTAL
        context = Path(scratch)
        without = shutil.ignore_patterns("__pycache__", "*.pyi")
        for package in (grpc.__path__[0], *google.__path__, ROOT / "tfserve_kit"):
            place = context / "site" / Path(package).name
            shutil.copytree(package, place, ignore=without, dirs_exist_ok=True)
        shutil.copy(typing_extensions.__file__, context / "site")
        program = context / "tensorflow_model_server"
        program.write_text(f"#!/usr/bin/python3\n{server.read_text('utf-8')}")
        program.chmod(0o755)
        lines = [f"FROM {_base()}", "COPY site/ /usr/lib/python3/dist-packages/",
                 "COPY tensorflow_model_server /usr/bin/"]  # fmt: skip
        (context / "Dockerfile").write_text("\n".join(lines))
        _build(context, MORTAL, f"--label=tfkit.source={source}")
    return MORTAL


def haproxy() -> str:
    """Return an image of this machine's HAProxy.

    Raises:
        NoImage: there is none, or as `stand_in`.
    """
    binary = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None:
        raise NoImage("there is no haproxy to make an image of")
    with _alone(), tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        if _inspect(HAPROXY, "{{.Id}}"):
            return HAPROXY
        context = Path(scratch)
        listed = subprocess.run(["ldd", binary], check=True, capture_output=True, text=True)
        for library in re.findall(r"(/(?:usr/)?lib/\S+\.so\S*)", listed.stdout):
            place = context / "root" / "usr" / library.removeprefix("/usr").lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, place)
        (context / "root/usr/sbin").mkdir(parents=True)
        shutil.copy(binary, context / "root/usr/sbin/haproxy")
        (context / "Dockerfile").write_text(f"FROM {_base()}\nCOPY root/ /\n")
        _build(context, HAPROXY, "--label=tfkit.source=haproxy")
    return HAPROXY


def archive(image: str) -> Path:
    """Return a file with an image, for daemons that have none yet."""
    made = _inspect(image, "{{.Id}}").removeprefix("sha256:")[:12]
    with _alone():
        file = BUILD / f"image-{image.partition(':')[0]}-{made}.tar"
        if not file.exists():
            for old in BUILD.glob(f"image-{image.partition(':')[0]}-*.tar"):
                old.unlink()
            docker("save", "--output", file, image)
    return file


def _build(context, tag, option):
    """Build an image in the place of the one that has this tag."""
    old = _inspect(tag, "{{.Id}}")
    docker("build", "--quiet", "--tag", tag, option, context)
    if old and old != _inspect(tag, "{{.Id}}"):
        docker("image", "rm", old, check=False, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def _alone():
    """Let one process at a time make images and wheels."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _source_hash():
    found = hashlib.sha256((ROOT / "pyproject.toml").read_bytes())
    for folder in ("tfserve_kit", "templates"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                found.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return found.hexdigest()


def _inspect(image, template):
    """Return a property of an image, nothing if the image is not there."""
    return docker("image", "inspect", "-f", template, image, check=False, stderr=subprocess.DEVNULL)


def _pulled(image):
    """Get an image; a registry that does not answer at once has none."""
    if _inspect(image, "{{.Id}}"):
        return True
    try:
        docker("manifest", "inspect", image, timeout=REGISTRY_TIMEOUT_S, stderr=subprocess.DEVNULL)
        docker("pull", "--quiet", image, stderr=subprocess.DEVNULL)
    except subprocess.SubprocessError:
        return False
    return True


def _base():
    """Return an image with bash, Python and its venv module."""
    if given := os.environ.get("TFKIT_BASE_IMAGE"):
        return given
    if _inspect(BASE, "{{.Id}}"):
        return BASE
    if _pulled(PYTHON_IMAGE):
        return PYTHON_IMAGE
    if not shutil.which("debootstrap") or os.geteuid() != 0:
        raise NoImage("no image can be pulled, and to make one takes root and debootstrap")
    with tempfile.TemporaryDirectory(dir=BUILD) as root:
        packages = "--include=python3,python3-venv"
        command = ["debootstrap", "--variant=minbase", packages, "bookworm", root]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        without = ["--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*"]
        pack = ["tar", "-C", root, *without, "-c", "."]
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as packed:
            docker("import", "-", BASE, stdin=packed.stdout)
    return BASE


def _wheels(base):
    """Return a folder with the wheels of tfkit, fresh, and of its dependencies, kept."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = docker("run", "--rm", "--entrypoint=python3", base, "-c", code)
    folder = BUILD / "wheels" / version
    wanted = files(None, {}, Variant(embedded=True))["server/requirements.txt"]
    listed = folder / "requirements.txt"
    if not listed.exists() or listed.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        binaries = ["--python-version", version, "--only-binary=:all:", "--dest", folder]
        _pip("download", *binaries, *wanted.split())
        listed.write_text(wanted)  # last: now the folder is complete
    for old in folder.glob("tfserve_kit-*.whl"):
        old.unlink()
    _pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    return folder


def _pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run([*command, "--quiet"], check=True)
