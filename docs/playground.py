"""Draws the page of `tfkit playground` from a real run: docs/playground.webp, shown in the README.

    python docs/playground.py   # part of `make picture`; needs chromium and chromium-driver

Two versions of a model of digits are trained, pushed and served; a digit is dropped on the page.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "data" / "digits" / "jpeg" / "digit-5.jpg"
WIDTH, HEIGHT, PATIENCE_S = 1180, 760, 60
STEPS = {1: 15, 2: 3000}  # of training, by version: the first knows little
DEPLOYMENT = """
[server]
grpc_port = 0
rest_port = 0

[monitoring]

[models.digits]
base_path = "models/digits"
versions = "all"
"""


def main() -> None:
    """Run all of it in a temporary folder, and draw."""
    with (
        tempfile.TemporaryDirectory(prefix="tfkit-picture-") as folder,
        _served(Path(folder)) as page,
    ):
        picture = _browsed(page)
    Image.open(io.BytesIO(picture)).convert("RGB").save(
        ROOT / "docs" / "playground.webp", quality=88, method=6
    )


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Serve both versions and the page during a `with` block: the address of the page."""
    environment = {**os.environ, "TFKIT_STATE_DIR": str(folder / "state")}

    def run(*argv: str | Path) -> None:
        subprocess.run(argv, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)

    tfkit = [sys.executable, "-m", "tfserve_kit"]
    train = [sys.executable, ROOT / "examples" / "digits" / "train.py"]
    for version, steps in STEPS.items():
        out = f"digits-v{version}"
        run(*train, "--out", out, "--steps", str(steps))
        run(*tfkit, "push-model", out, "--model", "digits", "--trust")
    (folder / "tfkit.toml").write_text(DEPLOYMENT, "utf-8")
    try:
        run(*tfkit, "serve", "--engine", "embedded", "--detach")
        command = [*tfkit, "playground", "--port", "0", "--no-open"]
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        ) as page:
            try:
                yield (page.stdout or io.StringIO()).readline().split()[-1]
            finally:
                page.terminate()
    finally:
        run(*tfkit, "stop", "--all")


def _browsed(address: str) -> bytes:
    """Compare the versions on one picture, twice (the first request warms up); return a PNG."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1.5, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(address)
        wait = WebDriverWait(browser, PATIENCE_S)
        wait.until(lambda _: browser.find_element(By.ID, "empty").is_displayed())
        Select(browser.find_element(By.ID, "other")).select_by_visible_text("Version 1")
        for _ in range(2):
            browser.execute_script("document.getElementById('clear').click()")
            browser.find_element(By.ID, "file").send_keys(str(PICTURE))
            wait.until(lambda _: browser.find_element(By.CSS_SELECTOR, ".verdict").is_displayed())
        browser.execute_script("scrollTo(0, 0)")
        return browser.get_screenshot_as_png()


if __name__ == "__main__":
    main()
