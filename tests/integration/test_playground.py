"""The page in a real browser, over a real server: it says what `tfkit predict` prints."""

import base64
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.commands import PATIENCE_S, running
from tests.ports import free_port
from tfserve_kit.deployment import build
from tfserve_kit.engines import process
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.serving import launch

webdriver = pytest.importorskip("selenium.webdriver")

from selenium.common.exceptions import WebDriverException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

pytestmark = pytest.mark.tensorflow

NASTY = '<img src=x onerror="window.hacked=1">'
LABELS = {1: ("red", "green", "blue"), 2: (NASTY, "leaf", "sky")}
DROP = """
const [text, name, kind] = arguments, transfer = new DataTransfer();
const data = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
transfer.items.add(new File([data], name, {type: "image/png"}));
const how = {bubbles: true, cancelable: true};
const event = kind === "paste" ? new ClipboardEvent(kind, {...how, clipboardData: transfer})
  : new DragEvent(kind, {...how, dataTransfer: transfer});
document.getElementById("drop").dispatchEvent(event);
"""

WIDEST = """
const seen = (e) => e.checkVisibility() && !e.closest(".quiet, .scroll, pre");
return Math.max(...[...document.querySelectorAll("body *")].filter(seen)
  .map((e) => e.getBoundingClientRect().right));
"""
LOADED = """
return performance.getEntries().filter((e) => /resource|navigation/.test(e.entryType))
  .map((e) => e.name);
"""
FORBIDDEN = """
const done = arguments[0], seen = [];
addEventListener("securitypolicyviolation", (e) => seen.push(e.effectiveDirective));
fetch("http://127.0.0.1:9/").catch(() => {});
new Image().src = "http://127.0.0.1:9/x.png";
try { document.body.innerHTML += "<b>"; } catch {}
setTimeout(() => done(seen), 300);
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, models):
    """Pictures, and a model whose two versions call their classes otherwise."""
    place = tmp_path_factory.mktemp("playground")
    for version, labels in LABELS.items():
        shutil.copytree(models / "image" / "1", place / "colours" / str(version))
        (place / "colours" / str(version) / "assets.extra").mkdir(exist_ok=True)
        Preprocessing(labels=labels).write(place / "colours" / str(version))
    for name, colour in {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}.items():
        Image.new("RGB", (30, 20), colour).save(place / f"{name}.png")
    Image.new("RGB", (30, 20), (255, 0, 0)).save(place / f"it's {NASTY.replace('/', '')}.png")
    (place / "broken.png").write_bytes(b"\x89PNG no picture")
    return place


@pytest.fixture(scope="module")
def server(folder, models, tmp_path_factory):
    """A server of those and other models, with a Prometheus page; `tfkit` knows it."""
    base_paths = {
        name: {"base_path": str(models / name)} for name in ("half_plus_two", "strings", "multi_io")
    }
    colours = {"base_path": str(folder / "colours"), "versions": "all", "labels": {"stable": 1}}
    document = {
        "server": {"name": f"playground-{os.getpid()}", "grpc_port": 0, "rest_port": 0},
        "models": {"colours": colours, **base_paths},
        "monitoring": {},
    }
    state = str(tmp_path_factory.mktemp("state"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFKIT_STATE_DIR", state)
        handle = launch.up(build(document, source="test", folder=folder), process.embedded())
        try:
            yield {**os.environ, "TFKIT_STATE_DIR": state}
        finally:
            handle.stop()


@contextmanager
def serving(environment, *arguments):
    """Run `tfkit playground` during a `with` block: its process and the address of its page."""
    argv = [
        sys.executable,
        "-m",
        "tfserve_kit",
        "playground",
        "--port",
        "0",
        "--no-open",
        *arguments,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, env=environment, **pipes) as popen:
        try:
            address = popen.stdout.readline().removeprefix("Playground: ").strip()
            assert address, popen.stderr.read()
            yield popen, address
        finally:
            popen.kill()


@pytest.fixture(scope="module")
def address(server):
    with serving(server) as (_, address):
        yield address


@pytest.fixture(scope="module")
def browser(require):
    """A browser without a window, to which no name leads anywhere."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        require("chromium", "no chromium, or no chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--window-size=1280,900",
                     "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


class Page:
    """The page, as somebody sees it."""

    def __init__(self, browser, address):
        self.browser = browser
        self.wait = WebDriverWait(browser, PATIENCE_S, ignored_exceptions=[WebDriverException])
        browser.get(address)

    def all(self, css):
        return [
            each for each in self.browser.find_elements(By.CSS_SELECTOR, css) if each.is_displayed()
        ]

    def texts(self, css):
        return [each.text for each in self.all(css)]

    def ready(self):
        self.until(lambda: self.all("#empty"))
        return self

    def until(self, probe):
        return self.wait.until(lambda _: probe())

    def choose(self, name, text):
        Select(self.browser.find_element(By.ID, name)).select_by_visible_text(text)

    def model(self, name):
        self.choose("model", name)
        self.until(lambda: self.all("#values" if name != "colours" else "#pictures"))

    def file(self, *paths):
        self.browser.find_element(By.ID, "file").send_keys("\n".join(map(str, paths)))

    def answers(self, count):
        """Wait for as many answers or errors; return the elements."""
        self.until(lambda: len(self.all(".answer, .card .error")) == count)
        return self.all(".answer, .card .error")


@pytest.fixture
def page(browser, address):
    return Page(browser, address).ready()


@pytest.fixture(scope="module")
def printed(server, folder):
    """What `tfkit predict --json` says of a picture."""

    @functools.cache
    def run(name, *more):
        argv = [
            sys.executable,
            "-m",
            "tfserve_kit",
            "predict",
            name,
            "--model",
            "colours",
            "--json",
        ]
        done = subprocess.run(
            [*argv, *more], cwd=folder, env=server, capture_output=True, check=True
        )
        return json.loads(done.stdout)["data"][0]

    return run


def rows(printed):
    """The classes as the page shows them."""
    return [f"{each['label']}#{each['index']}\n{each['score']:.4f}" for each in printed["scores"]]


def shown(element):
    return [
        re.sub(r"\s*#", "#", each.text)
        for each in element.find_elements(By.CSS_SELECTOR, ".bars li")
    ]


def test_chosen_file_is_answered_as_tfkit_predict_prints(page, folder, printed):
    page.file(folder / "blue.png")
    (answer,) = page.answers(1)
    said = printed("blue.png")
    assert answer.find_element(By.CSS_SELECTOR, ".label").text == said["scores"][0]["label"]
    assert shown(answer) == rows(said)
    assert page.texts("h3") == ["In service: version 2"]
    legend = [re.match("[A-Z a-z]+", each)[0].strip() for each in page.texts(".legend li")]
    assert legend == ["Prepare", "Send", "Server"]


def test_prepared_picture_is_drawn(page, folder):
    page.file(folder / "green.png")
    page.answers(1)
    pixel = page.browser.execute_script(
        "const i = document.querySelector('figure img'), c = document.createElement('canvas');"
        "[c.width, c.height] = [i.naturalWidth, i.naturalHeight];"
        "c.getContext('2d').drawImage(i, 0, 0);"
        "return [...c.getContext('2d').getImageData(0, 0, 1, 1).data]"
    )
    assert pixel == [0, 255, 0, 255]


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_dropped_and_pasted_pictures_are_answered(page, folder, printed, kind):
    data = base64.b64encode((folder / "green.png").read_bytes()).decode()
    page.browser.execute_script(DROP, data, "image.png", kind)
    (answer,) = page.answers(1)
    assert shown(answer) == rows(printed("green.png"))
    assert page.texts("h2") == ["image.png" if kind == "drop" else "pasted.png"]
    assert bool(page.all(".save")) == (kind == "paste")


def test_two_versions_stand_side_by_side(page, folder, printed):
    page.choose("version", "stable (label of 1)")
    page.choose("other", "Version 2")
    page.file(folder / "red.png", folder / "blue.png")
    answers = page.answers(4)
    versions = (("--label", "stable"), ("--version", "2"))
    told = [printed(name, *each) for name in ("red.png", "blue.png") for each in versions]
    assert [shown(each) for each in answers] == [rows(each) for each in told]
    assert page.texts("h3") == ["Label stable: version 1", "Version 2"] * 2
    best = [each["scores"][0]["label"] for each in told]
    assert page.texts(".verdict") == [f"They differ: “{best[0]}” and “{best[1]}”.",
                                      f"They differ: “{best[2]}” and “{best[3]}”."]  # fmt: skip
    lefts = {round(each.location["x"]) for each in page.all(".column")}
    assert len(lefts) == 2


def test_labels_and_file_names_are_text_whatever_they_say(page, folder, printed):
    (file,) = folder.glob("it's*")
    page.file(file)
    (answer,) = page.answers(1)
    assert NASTY in {each["label"] for each in printed("red.png")["scores"]}
    assert shown(answer) == rows(printed("red.png"))
    assert page.texts("h2") == [file.name]
    script = "return [window.hacked ?? null, document.querySelectorAll('img[src=x]').length]"
    assert page.browser.execute_script(script) == [None, 0]


def test_error_shows_cause_and_remedy_and_the_rest_goes_on(page, folder):
    page.file(folder / "broken.png", folder / "red.png")
    page.answers(2)
    (message,), (remedy,) = page.texts(".error .message"), page.texts(".error .remedy")
    assert "broken.png is not a picture that can be read" in message
    assert remedy.startswith("Try: give a JPEG, PNG")
    assert len(page.all(".answer")) == 1


def test_server_that_does_not_answer_is_told_of_and_asked_again(browser, server):
    port = free_port()
    arguments = ("--url", f"grpc://127.0.0.1:{port}", "--model", "colours", "--timeout", "5")
    with serving(server, *arguments) as (_, address):
        page = Page(browser, address)
        page.until(lambda: page.all(".error"))
        assert f"127.0.0.1:{port}" in page.texts(".error .message")[0]
        assert page.texts(".error .remedy")[0].startswith("Try: ")
        page.all("#trouble button, #refresh")[-1].click()
        page.until(lambda: page.all(".error"))


def test_numbers_text_and_json_are_sent(page):
    page.model("half_plus_two")
    page.browser.find_element(By.ID, "text").send_keys("1, 3", Keys.ENTER, "5")
    page.all("#values .main")[0].click()
    page.answers(1)
    assert page.texts(".outputs td") == ["y", "float [3]", "3.5, 4.5, 5.5"]
    page.model("multi_io")
    page.all("#example")[0].click()
    page.all("#values .main")[0].click()
    page.answers(2)
    page.model("half_plus_two")
    page.browser.find_element(By.ID, "text").send_keys("one")
    page.all("#values .main")[0].click()
    page.until(lambda: page.all(".card .error"))
    assert "not made of numbers" in page.texts(".card .error .message")[0]


def test_keyboard_is_enough(page):
    def focused():
        return page.browser.switch_to.active_element

    def keys(*texts):
        focused().send_keys(*texts)

    def tab_to(css, most=40):
        for _ in range(most):
            if focused().get_dom_attribute("id") == css or css in (
                focused().get_dom_attribute("class") or ""
            ):
                return
            keys(Keys.TAB)
        raise AssertionError(f"{css} is not reached")

    tab_to("file")
    outline = "return getComputedStyle(document.getElementById('drop')).outlineStyle"
    assert page.browser.execute_script(outline) == "solid"
    page.browser.execute_script("document.activeElement.blur()")
    tab_to("model")
    keys("half")
    page.until(lambda: page.all("#values"))
    tab_to("text")
    keys("7", Keys.CONTROL, Keys.ENTER)
    page.answers(1)
    assert page.texts(".outputs td")[-1] == "6.5"
    while focused().tag_name != "summary" or "command" not in focused().text:
        keys(Keys.TAB)
    keys(Keys.ENTER)
    page.until(lambda: page.all("[role=tab]"))
    keys(Keys.TAB)
    keys(Keys.ARROW_RIGHT)
    keys(Keys.ARROW_RIGHT)
    assert focused().text == "curl"
    assert page.texts("pre")[0].startswith("curl ")


def test_nothing_but_the_page_itself_is_asked(page, address, folder):
    page.file(folder / "red.png")
    page.answers(1)
    loaded = page.browser.execute_script(LOADED)
    assert any(each.endswith("/style.css") for each in loaded)
    assert not [each for each in loaded if not each.startswith((address, "data:", "blob:"))]
    complaints = [each["message"] for each in page.browser.get_log("browser")]
    assert not [each for each in complaints if "status of" not in each]
    tried = page.browser.execute_async_script(FORBIDDEN)
    assert {"connect-src", "img-src", "require-trusted-types-for"} <= set(tried)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_the_window_and_follows_the_scheme(page, folder, width, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.choose("other", "Version 1")
        page.file(*folder.glob("it's*"))
        page.answers(2)
        for summary in page.all("summary"):
            summary.click()
        assert page.browser.execute_script(WIDEST) <= width
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width
        ground = page.browser.execute_script(
            "return getComputedStyle(document.body).backgroundColor"
        )
        assert (sum(map(int, re.findall(r"\d+", ground))) > 384) == (scheme == "light")
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def commands(page):
    """Return the command of each tab of the newest answer."""
    page.all(".copy summary")[0].click()
    found = {}
    for tab in page.all("[role=tab]")[:3]:
        tab.click()
        found[tab.text] = page.texts("pre")[0]
    return found


def pasted(command, folder, environment, language="bash"):
    argv = (
        ["bash", "-e", "-o", "pipefail", "-c", command]
        if language == "bash"
        else [sys.executable, "-c", command]
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("options", [(), ("--version", "1")])
def test_commands_for_a_picture_work_when_pasted(page, folder, server, printed, options):
    (file,) = folder.glob("it's*")
    if options:
        page.choose("version", "Version 1")
    page.file(file)
    page.answers(1)
    found = commands(page)
    said = printed("red.png", *options)["scores"]
    assert said[0]["label"] in pasted(found["tfkit"], folder, server)
    lines = pasted(found["Python"], folder, server, "python").splitlines()
    assert lines == [f"{each['score']} {each['index']} {each['label']}" for each in said]
    answer = json.loads(pasted(found["curl"], folder, server))["outputs"]
    scores = answer["scores"] if isinstance(answer, dict) else answer
    assert sorted(scores[0], reverse=True) == pytest.approx([each["score"] for each in said])


def test_commands_for_values_work_when_pasted(page, folder, server):
    page.model("half_plus_two")
    page.browser.find_element(By.ID, "text").send_keys("9")
    page.all("#values .main")[0].click()
    page.answers(1)
    found = commands(page)
    assert "7.5" in pasted(found["tfkit"], folder, server)
    assert "7.5" in pasted(found["Python"], folder, server, "python")
    assert "7.5" in pasted(found["curl"], folder, server)


def test_interrupt_ends_it_and_frees_the_port(server):
    with serving(server) as (popen, _):
        assert popen.stderr.readline() == "Ctrl-C ends it.\n"
        popen.send_signal(signal.SIGINT)
        _, err = popen.communicate(timeout=PATIENCE_S)
    assert popen.returncode == 130
    assert err.split() == ["Interrupted."]


def test_no_server_is_said_before_any_page_is_served(state_dir):
    with running("playground", "--no-open") as command:
        done = command.ended()
    assert done.code == 2
    assert "tfkit runs no server" in done.err
