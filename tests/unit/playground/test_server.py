"""Who may ask the page, how much and how often, and that nothing from outside becomes markup."""

import http.client
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from urllib.parse import urlencode, urlsplit

import pytest

from tfserve_kit.errors import ModelNotFound, ServerUnreachable, UsageError
from tfserve_kit.playground import server
from tfserve_kit.playground.server import MAX_BODY_BYTES, MAX_BURST, Playground, _Ask, _Page

HOST = "127.0.0.1:8580"
NASTY = "<img src=x onerror=alert(1)>"


class FakeSession:
    """Answers with what it was asked, or raises what it is told to."""

    def __init__(self, error=None):
        self.error, self.asked = error, []

    def overview(self):
        return self._said("overview")

    def describe(self, target):
        return self._said("describe", target)

    def picture(self, target, top, data, name):
        return self._said("picture", target, top, data, name)

    def values(self, target, top, text, form):
        return self._said("values", target, top, text, form)

    def close(self):
        self.asked.append("closed")

    def _said(self, *asked):
        if self.error:
            raise self.error
        self.asked.append(asked)
        return {"said": NASTY}


class StillClock:
    def __init__(self):
        self.time_s = 0.0

    def now_s(self):
        return self.time_s


@pytest.fixture
def session():
    return FakeSession()


@pytest.fixture
def clock():
    return StillClock()


@pytest.fixture
def page(session, clock):
    return _Page(session, "127.0.0.1", clock)


def get(page, target="/", host=HOST, **headers):
    return page.answer(_Ask("GET", target, {"host": host, **headers}, lambda: b""))


def post(page, target="/api/picture?model=m", body=b"data", **headers):
    own = {"host": HOST, "origin": f"http://{HOST}", "x-tfkit-token": page.token}
    return page.answer(_Ask("POST", target, own | headers, lambda: body))


def said(reply):
    return json.loads(reply.body)


@pytest.mark.parametrize(
    "host", [HOST, "localhost:9000", "127.0.0.1", "[::1]:8580", "LOCALHOST:8580", "127.9.9.9:1"]
)
def test_page_is_served_under_the_names_of_this_machine(page, host):
    assert get(page, host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8580",
        "127.0.0.1.evil.example",
        "",
        "192.168.1.7:8580",
        "localhost.evil",
        "[::1",
    ],
)
@pytest.mark.parametrize("target", ["/", "/script.js", "/api/overview"])
def test_names_that_somebody_made_to_lead_here_are_refused(page, session, host, target):
    reply = get(page, target, host=host)
    assert reply.status == 421
    assert said(reply)["error"]["remedy"]
    assert page.token.encode() not in reply.body
    assert not session.asked


@pytest.mark.parametrize(("host", "status"), [("192.168.1.7:1", 200), ("evil.example", 421)])
def test_page_for_others_is_served_at_addresses_but_not_under_any_name(session, host, status):
    assert get(_Page(session, "0.0.0.0"), host=host).status == status


def test_page_for_a_name_is_served_under_it(session):
    assert get(_Page(session, "Box.local"), host="box.local:8580").status == 200


def test_own_page_may_send(page, session):
    assert post(page).status == 200
    ((what, target, _, data, name),) = session.asked
    assert (what, target.model, data, name) == ("picture", "m", b"data", "picture")


@pytest.mark.parametrize(
    "wrong",
    [
        {"x-tfkit-token": ""},
        {"x-tfkit-token": "é"},
        {"x-tfkit-token": "x" * 43},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": f"https://{HOST}"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize("target", ["/api/picture?model=m", "/api/values?model=m", "/api/body"])
def test_other_pages_may_not_send(page, session, wrong, target):
    reply = post(page, target, **wrong)
    assert reply.status == 403
    assert not session.asked


def test_other_pages_may_not_make_it_ask_the_model_server(page, session):
    assert get(page, "/api/describe?model=m", **{"sec-fetch-site": "cross-site"}).status == 403
    assert not session.asked


@pytest.mark.parametrize(
    ("verb", "target", "status"),
    [("GET", "/api/picture", 405), ("POST", "/api/overview", 405), ("GET", "/etc/passwd", 404),
     ("GET", "/../server.py", 404), ("GET", "/server.py", 404), ("POST", "/", 404)],
)  # fmt: skip
def test_nothing_else_is_there(page, verb, target, status):
    assert page.answer(_Ask(verb, target, {"host": HOST}, lambda: b"")).status == status


def test_more_requests_than_one_person_makes_have_to_wait(page, clock):
    replies = [post(page) for _ in range(int(MAX_BURST) + 3)]
    assert [each.status for each in replies] == [200] * int(MAX_BURST) + [429] * 3
    wait_s = float(dict(replies[-1].headers)["Retry-After"])
    assert 0 < wait_s <= 1 / server.MAX_PER_SECOND
    clock.time_s += wait_s
    assert post(page).status == 200


@pytest.mark.parametrize(
    "query",
    [{"version": "-1"}, {"version": "٣"}, {"version": str(2**63)}, {"top": "9999"}, {"top": "x"},
     {"version": "1", "label": "stable"}],
)  # fmt: skip
def test_choices_that_mean_nothing_are_refused(page, session, query):
    reply = get(page, "/api/describe?" + urlencode({"model": "m", **query}))
    assert (reply.status, said(reply)["error"]["kind"]) == (400, "UsageError")
    assert not session.asked


@pytest.mark.parametrize(
    ("error", "status"),
    [(ModelNotFound("no m", remedy="name it"), 404), (UsageError("no", remedy="yes"), 400),
     (ServerUnreachable("gone", remedy="start it"), 502)],
)  # fmt: skip
def test_errors_come_with_cause_and_remedy(clock, error, status):
    reply = get(_Page(FakeSession(error), "127.0.0.1", clock), "/api/overview")
    assert reply.status == status
    kind = type(error).__name__
    assert said(reply) == {
        "error": {"kind": kind, "message": error.message, "remedy": error.remedy}
    }


def test_answers_are_data_and_never_a_page(page):
    reply = post(page, f"/api/picture?model=m&name={NASTY}")
    assert reply.kind == "application/json"
    assert said(reply) == {"said": NASTY}


def test_script_knows_no_way_from_text_to_markup():
    script = (files("tfserve_kit.playground") / "script.js").read_text("utf-8")
    ways = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc"
        r"|createContextualFragment|DOMParser|javascript:|setAttribute\(.(on|style|src|href)"
    )
    assert not re.findall(ways, script)


class _Outside(HTMLParser):
    """Collects addresses, and what a strict policy would not run."""

    def __init__(self):
        super().__init__()
        self.addresses, self.inline = [], []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in {"src", "href", "action", "srcset"}:
                self.addresses.append(value)
            if name.startswith("on") or name == "style":
                self.inline.append((tag, name))


def test_page_needs_nothing_from_elsewhere(page):
    reader = _Outside()
    reader.feed(get(page).body.decode())
    outside = [each for each in reader.addresses if urlsplit(each).scheme not in {"", "data"}]
    assert (outside, reader.inline) == ([], [])
    style = get(page, "/style.css").body.decode()
    assert not re.findall(r"@import|url\(", style)


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


PAIRS = [(text, ground) for text in ("text", "muted", "accent")
         for ground in ("ground", "surface", "sunken")]  # fmt: skip


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [*PAIRS, ("on-accent", "accent"), ("error", "error-ground"), ("text", "error-ground"),
     ("text", "note-ground"), ("note", "surface")],
)  # fmt: skip
def test_text_stands_out_from_its_ground(scheme, text, ground):
    style = (files("tfserve_kit.playground") / "style.css").read_text("utf-8")
    colours = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    known = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", colours[scheme]))
    light, dark = sorted((luminance(known[text]), luminance(known[ground])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.fixture
def running(session):
    with Playground(session, "127.0.0.1", 0) as playground:
        yield playground
    assert session.asked[-1] == "closed"


def sent(playground, verb, target, body=None, headers=None):
    place = urlsplit(playground.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
    try:
        connection.request(verb, target, body, headers or {})
        reply = connection.getresponse()
        return reply, reply.read()
    finally:
        connection.close()


def own(playground):
    _, page = sent(playground, "GET", "/")
    token = re.search(rb'name="token" content="([^"]+)"', page)[1].decode()
    return {"X-TFKIT-Token": token, "Origin": playground.url.rstrip("/")}


def test_every_answer_carries_the_policy(running):
    for target in ("/", "/api/overview", "/nothing"):
        reply, _ = sent(running, "GET", target)
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in reply.headers


def test_body_is_passed_on_as_it_came(running, session):
    data = bytes(range(256)) * 5000
    query = urlencode({"model": "m", "version": 3, "name": NASTY, "top": 7})
    reply, _ = sent(running, "POST", f"/api/picture?{query}", data, own(running))
    assert reply.status == 200
    what, target, top, body, name = session.asked[-1]
    assert (what, body, name) == ("picture", data, NASTY)
    assert (target.version, target.label, top) == (3, None, 7)


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Content-Length": str(MAX_BODY_BYTES + 1)}, 413), ({"Content-Length": "-5"}, 411),
     ({"Content-Length": "1e3"}, 411), ({"Transfer-Encoding": "chunked"}, 411)],
)  # fmt: skip
def test_body_too_large_or_of_unknown_size_is_not_read(running, session, headers, status):
    place = urlsplit(running.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
    connection.putrequest("POST", "/api/picture?model=m")
    for name, value in {**own(running), **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    reply = connection.getresponse()
    error = json.loads(reply.read())["error"]
    connection.close()
    assert (reply.status, bool(error["remedy"])) == (status, True)
    assert not session.asked


def test_port_in_use_is_named_with_a_remedy(running, session):
    port = urlsplit(running.url).port
    with pytest.raises(UsageError, match=f"{port}") as caught:
        Playground(session, "127.0.0.1", port)
    assert "--port" in caught.value.remedy
