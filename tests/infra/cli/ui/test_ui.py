"""The page: hostile texts in every field, who is let in, and what it may load."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Coroutine
from html.parser import HTMLParser
from typing import Any

import httpx2

from infra.cli.environ import Loaded
from infra.cli.fleet.lists import NotThere
from infra.cli.fleet.survey import MOST_CALLS
from infra.cli.fork.page import POLICY
from infra.cli.session.follow import FeedBroken
from infra.cli.ui import app as ui
from infra.cli.ui.pages import Reader, graph_of, sleeps_of, timeline_of
from shared.ports import ItemState
from tests.infra.cli.fleet.test_survey import NOW, SESSION, item
from tests.infra.cli.fork.test_page import ATTRIBUTES, TAGS, ParsedReport
from tests.infra.cli.ui.hostile import RACE, Hostile
from tests.support.many_sessions import SESSIONS, many_sessions, variables
from tests.support.preloaded import Preloaded
from tests.support.waiting import PATIENCE
from tests.support.world import ROOT

TOKEN = "the-token-of-this-page"
BASE = "http://localhost:5061"
PATHS = ("/", "/races", "/races/that-failed", "/alarms", f"/sessions/{SESSION}")
KNOWN = {
    *("html", "head", "meta", "title", "link", "script", "body", "a", "header", "nav", "main", "h1", "h2", "div", "p"),
    *(
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "figure",
        "figcaption",
        "svg",
        "rect",
        "polyline",
        "span",
        "ol",
        "ul",
    ),
    *("li", "time", "dl", "dt", "dd", "form", "input", "button", "label", "code"),
}


class ParsedPage(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in ("meta", "link", "input", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def play(
    run: Callable[[httpx2.AsyncClient], Coroutine[Any, Any, None]],
    *,
    act: bool = False,
    known: bool = True,
    reader: type[Hostile] = Hostile,
) -> None:
    async def go() -> None:
        loaded = Loaded({}, None)
        made = ui.make_app(loaded, reader(loaded), token=TOKEN, hosts=frozenset({"localhost"}), act=act)
        cookies = {ui.COOKIE: ui.cookie_of(TOKEN)} if known else {}
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=made), base_url=BASE, cookies=cookies
        ) as client:
            await run(client)

    asyncio.run(go())


def test_no_text_of_anybody_becomes_a_tag_an_attribute_or_a_control_character() -> None:
    async def look(client: httpx2.AsyncClient) -> None:
        for path in PATHS:
            for query in ("", "?live"):
                answer = await client.get(path + query)
                assert answer.status_code in (200, 286), answer.text
                page = ParsedPage(answer.text)
                assert set(page.tags) <= KNOWN and page.open == []
                assert page.tags.count("script") == (0 if query else 2)
                assert not any(name.startswith("on") or value == "/x" for _, name, value in page.attributes)
                assert "document.title='owned'" in page.words and "49" not in page.words.split()
                assert not set("\x1b\x07\u202e") & set(answer.text)

    play(look, act=True)


def test_each_page_has_a_language_a_title_one_heading_and_names_for_what_can_be_reached_by_keyboard() -> None:
    async def look(client: httpx2.AsyncClient) -> None:
        for path in PATHS:
            page = ParsedPage((await client.get(path)).text)
            assert ("html", "lang", "en") in page.attributes
            assert page.tags.count("h1") == page.tags.count("title") == page.tags.count("main") == 1
            assert page.tags.count("caption") == page.tags.count("table")
            regions = [value for tag, name, value in page.attributes if name == "tabindex" and tag == "div"]
            assert len(regions) == page.attributes.count(("div", "role", "region"))

    play(look)


def test_a_kept_report_is_a_page_of_its_own_and_as_harmless() -> None:
    async def look(client: httpx2.AsyncClient) -> None:
        whole = await client.get(f"/races/{RACE}")
        report = ParsedReport(whole.text)
        assert report.tags <= {*TAGS.split(), "a"} and report.attributes <= {*ATTRIBUTES.split(), "href"}
        assert whole.headers["content-security-policy"] == f"{POLICY}; frame-ancestors 'none'"
        assert "document.title='owned'" in report.text and not set("\x1b\x07\u202e") & set(whole.text)
        part = await client.get(f"/races/{RACE}?live")
        assert part.status_code == 286 and "Look at it" in ParsedPage(part.text).words
        assert "content-security-policy" in part.headers

    play(look)


class ReaderWithoutSessions(Hostile):
    async def session(self, session_id: str) -> dict[str, Any]:
        if session_id.endswith("gone"):
            raise NotThere("the Claude API answered 404: no such session.")
        raise FeedBroken("no answer from api.example (connection refused)")


def test_a_session_that_is_not_there_is_404_and_a_service_in_trouble_502() -> None:
    async def look(client: httpx2.AsyncClient) -> None:
        for name, status, words in (("sesn_gone", 404, "no such session"), ("sesn_other", 502, "no answer from")):
            answer = await client.get(f"/sessions/{name}")
            assert answer.status_code == status and words in ParsedPage(answer.text).words

    play(look, reader=ReaderWithoutSessions)


def test_nobody_is_let_in_without_the_token_or_by_another_name() -> None:
    async def look(client: httpx2.AsyncClient) -> None:
        for path in (*PATHS, f"/races/{RACE}", "/races/ui.css", "/htmx.min.js", "/nowhere"):
            refused = await client.get(path)
            assert refused.status_code == 401 and SESSION not in refused.text
            assert "default-src 'none'" in refused.headers["content-security-policy"]
        assert (await client.get("/", headers={"host": "evil.example"})).status_code == 421
        wrong = await client.post("/login", data={"token": "x"})
        assert wrong.status_code == 401 and "not the token" in wrong.text
        right = await client.get(f"/?token={TOKEN}")
        assert right.status_code == 303 and right.headers["location"] == "./"
        assert "HttpOnly" in right.headers["set-cookie"] and "SameSite=strict" in right.headers["set-cookie"]
        assert TOKEN not in right.headers["set-cookie"] and (await client.get("/")).status_code == 200
        client.cookies.clear()
        client.cookies.set(ui.COOKIE, TOKEN)
        assert (await client.get("/")).status_code == 401
        client.cookies.set(ui.COOKIE, ui.cookie_of(TOKEN))
        page = await client.get("/")
        policy = page.headers["content-security-policy"]
        assert "script-src 'self'" in policy and "unsafe" not in policy and page.headers["cache-control"] == "no-store"
        assert "htmx=function" in (await client.get("/htmx.min.js")).text

    play(look, known=False)


def test_for_other_machines_the_token_is_never_in_an_address() -> None:
    loaded = Loaded({}, None)
    app = ui.make_app(loaded, Hostile(loaded), token=TOKEN, hosts=frozenset(), act=False, by_address=False)

    async def look() -> None:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=BASE) as client:
            assert (await client.get(f"/?token={TOKEN}")).status_code == 401
            right = await client.post("/login", data={"token": TOKEN})
            assert right.status_code == 303 and TOKEN not in str(right.headers)
            assert (await client.get("/")).status_code == 200

    asyncio.run(look())


def test_a_thousand_sessions_are_asked_for_once_however_many_look() -> None:
    with many_sessions() as service:
        reader = Reader(Loaded(variables(service), None))

        async def look() -> tuple[dict[str, Any], dict[str, Any]]:
            return await asyncio.gather(reader.home(), reader.races())

        home, _ = asyncio.run(look())
        assert len(home["rows"]) == SESSIONS and home["overview"].queues[0].environment == home["environments"][0]
        assert service.calls.total() <= MOST_CALLS + 1


def test_the_graph_and_the_timeline_are_of_what_the_services_tell() -> None:
    graph = graph_of([item(ItemState.STOPPED, age=60, started_at=NOW - 30), item(ItemState.QUEUED, age=90_000)], NOW)
    assert (graph.bars[-1].came, graph.bars[-1].served, sum(bar.came for bar in graph.bars)) == (1, 1, 1)
    old = item(ItemState.ACTIVE, age=7_000, acknowledged_at=NOW - 3_500)
    waited = [bar.waiting for bar in graph_of([old, item(ItemState.QUEUED, age=90_000)], NOW).bars]
    assert waited == [1] * 24 + [2] * 6 + [1] * 6
    assert not any(bar.waiting for bar in graph_of([item(ItemState.ACTIVE, age=7_000)], NOW).bars)
    use = {"type": "agent.tool_use", "id": "1", "name": "bash", "input": {"command": "ls"}}
    work = {"id": "work_1", "created_at": 5.0, "acknowledged_at": 7.0, "stopped_at": None}
    ends = ((8, False, True), (9, True, False), (0, True, False), (2**70, True, False))
    workers = [{"name": f"w-{at:x}-1", "running": running, "died": died} for at, running, died in ends]
    moments = timeline_of([{**use, "processed_at": "1970-01-01T00:00:06Z"}], [work], workers)
    assert [each.text.split()[-1] for each in moments] == ["queued", "ls", "acked", "died", "runs"]
    assert moments[3].look == "wrong"
    steps: list[dict[str, Any]] = [
        {"at": 6.5, "text": "begins"},
        {"at": None, "text": "of an older worker"},
        {"at": 2.0**70, "text": "x"},
    ]
    told = [each.text for each in timeline_of([{**use, "processed_at": "1970-01-01T00:00:06Z"}], [work], (), steps)]
    assert told[2] == "set-up: begins" and len(told) == 4


def test_a_sandbox_slept_from_its_time_out_after_a_work_item_until_the_next_one() -> None:
    box = {"created_at": 10.0, "timeout_seconds": 300, "state": "suspended"}
    lives = [(5.0, 9.0), (20.0, 100.0), (150.0, 200.0), (4_100.0, 5_000.0)]
    items: list[dict[str, Any]] = [{"created_at": came, "stopped_at": ended} for came, ended in lives]
    told = sleeps_of(items, box, 9_000.0)
    assert [each.at for each in told] == [500.0, 5_300.0]
    assert "until 1 h later" in told[0].text and "sleeps" in told[1].text
    assert [each.at for each in sleeps_of(items, box, 5_100.0)] == [500.0, 5_100.0]  # put to sleep by somebody
    assert [each.at for each in sleeps_of(items, {**box, "state": "running"}, 9_000.0)] == [500.0]
    at_work = [*items, {"created_at": 8_000.0, "stopped_at": None}]
    assert "when work came" in sleeps_of(at_work, box, 9_000.0)[-1].text
    assert not sleeps_of(items, {"created_at": None, "timeout_seconds": None, "state": None}, 9_000.0)


def test_the_command_prints_an_address_that_shows_a_thousand_sessions_until_ctrl_c() -> None:
    with many_sessions() as service:
        environ = {"PATH": os.environ["PATH"], **variables(service)}
        command = ["-m", "infra.cli", "ui", "--ui-port", "0"]
        with Preloaded(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                address = process.stdout.readline().split()[-1]
                with httpx2.Client(follow_redirects=True, timeout=PATIENCE) as client:
                    page = ParsedPage(client.get(address).text)
                    rows = [
                        value for _, name, value in page.attributes if name == "href" and "/sessions/" in str(value)
                    ]
                    assert len(set(rows)) == SESSIONS
                assert httpx2.get(address.split("?")[0], timeout=PATIENCE).status_code == 401
            finally:
                process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) in (0, 130)
