"""The page in a real Chromium, at the width of a phone and of a desktop: what fits, what may be loaded, what a keyboard
reaches, what axe-core finds, and that no text of anybody runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from infra.cli.environ import Loaded
from infra.cli.reference.browser import Tab, browser, program
from infra.cli.ui import app as ui
from infra.cli.ui.policy import PolicyMiddleware
from infra.local.process import listen
from tests.infra.cli.fleet.test_survey import SESSION
from tests.infra.cli.ui.hostile import RACE, Hostile, hostile_drawings

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium here (Debian: apt-get install chromium)")

TOKEN = "the-token-of-this-page"
SIZES = ((390, 844, True), (1280, 800, False))
PATHS = (
    "/acting/call",
    "/acting/sure",
    "/",
    "/races",
    "/races/that-failed",
    f"/races/{RACE}",
    "/alarms",
    f"/sessions/{SESSION}",
)
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
AXE = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
FINDINGS = """axe.run({resultTypes: ['violations']}).then(found => found.violations.map(
    each => `${each.id}: ${each.help}: ` + each.nodes.map(node => node.html.slice(0, 120)).join(' | ')))"""
UNTOUCHED = "document.title !== 'owned' && !document.querySelector('img, [onerror], a[hx-get]')"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    loaded = Loaded({}, None)
    own = ui.make_app(loaded, Hostile(loaded), token=TOKEN, hosts=frozenset({"127.0.0.1"}), act=True)
    beside = PolicyMiddleware(ui.pages_of(loaded, Hostile(loaded), act=False))
    acting = PolicyMiddleware(hostile_drawings())
    app = Starlette(routes=[Mount("/below", beside), Mount("/acting", acting), Mount("/", own)])
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser() as made:
        yield made


def findings(tab: Tab) -> Any:
    tab.evaluate(f"{AXE}; 0")
    return tab.evaluate(FINDINGS)


def test_each_page_fits_obeys_its_policy_and_has_nothing_that_axe_finds(tab: Tab, url: str) -> None:
    tab.resize(*SIZES[0][:2])
    tab.go(f"{url}/login")
    assert tab.evaluate(FITS) and findings(tab) == []
    tab.go(f"{url}/?token={TOKEN}")
    for width, height, dark in SIZES:
        tab.resize(width, height, dark=dark)
        for path in PATHS:
            tab.go(url + path)
            assert tab.evaluate("innerWidth") == width
            assert tab.evaluate(FITS), (path, width)
            assert tab.evaluate(UNTOUCHED) and tab.said == [], (path, tab.said)
            assert findings(tab) == [], (path, width)


FOCUSED = "document.activeElement.id || document.activeElement.textContent.trim().slice(0, 40)"
SEEN = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
SWAPPED = "new Promise(done => document.addEventListener('htmx:afterSettle', () => done(true), {once: true}))"


def tab_to(tab: Tab, wanted: str) -> list[str]:
    """Press the tab key until this is reached; all that was on the way."""
    way: list[str] = []
    while wanted not in way:
        assert len(way) < 40, way
        tab.press("Tab")
        way.append(tab.evaluate(FOCUSED))
        assert tab.evaluate(SEEN), f"{way[-1]} does not show that it has the focus"
    return way


def test_a_keyboard_reaches_everything_and_an_update_takes_neither_its_place_nor_a_tables(tab: Tab, url: str) -> None:
    tab.resize(*SIZES[0][:2])
    tab.go(f"{url}/?token={TOKEN}")
    assert tab_to(tab, "Alarms") == ["To the content", "Sessions", "Races", "Alarms"]
    tab.go(url)
    tab.press("Tab")
    tab.press("Enter")  # skips the pages' links
    assert tab_to(tab, SESSION) == ["queues", "sessions", SESSION]
    scrolled = "document.getElementById('sessions').scrollLeft"
    tab.evaluate(f"{scrolled} = 50")
    tab.evaluate(SWAPPED)
    assert (tab.evaluate(FOCUSED), tab.evaluate(scrolled)) == (SESSION, 50)
    with tab.loading():
        tab.press("Enter")
    assert tab.evaluate("location.pathname") == f"/sessions/{SESSION}"
    tab_to(tab, "interrupt")
    with tab.loading():
        tab.press("Enter")  # of a session that no service knows: the page says so
    assert tab.evaluate("document.querySelector('h1').textContent") == "Not done"
    assert tab.evaluate(FITS) and findings(tab) == []


def test_below_a_path_of_a_server_pages_update_and_lead_to_each_other(tab: Tab, url: str) -> None:
    tab.go(f"{url}/below/")
    assert tab.evaluate(SWAPPED) and tab.evaluate(UNTOUCHED) and tab.said == []
    for click, path in ((f"#{SESSION}", f"sessions/{SESSION}"), ("nav a[href$=races]", "races")):
        with tab.loading():
            tab.evaluate(f"document.querySelector('{click}').click()")
        assert tab.evaluate("location.pathname") == f"/below/{path}" and tab.said == []
