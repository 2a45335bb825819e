"""The race's page: complete, self-contained, and inert whatever a branch has written."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.cli.fork.page import POLICY, STYLE, render
from shared.races.report import Artifact, BranchReport, BranchStatus, PromotionReport, RaceReport, RaceSpan
from shared.races.request import FileJudge, RaceRequest, Source

ATTACKS: Final = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "</pre></details></title></style></svg><iframe src=https://example.com>",
    "<!-- --><base href=//example.com>&lt;&#60;",
    "]]><svg onload=alert(1)>",
)
TAGS: Final = (
    "html head meta title style body main header h1 h2 h3 strong p dl div dt dd section ul ol li span svg rect table "
    "thead tbody tr th td details summary pre code"
)
ATTRIBUTES: Final = (
    "lang charset http-equiv content name class viewbox aria-hidden preserveaspectratio role x y width height scope "
    "open tabindex aria-label"
)


class ParsedReport(HTMLParser):
    """What a browser would make of it, roughly: tags, attributes, and the text outside of the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.comments: list[str] = []
        self.words: list[str] = []
        self.metas: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        found = dict(attrs)
        if tag == "meta":
            self.metas[found.get("http-equiv") or found.get("name") or "charset"] = found.get("content") or ""
        else:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def check_inert(self) -> None:
        assert self._open == []
        assert self.tags <= set(TAGS.split())
        assert self.attributes <= set(ATTRIBUTES.split())
        assert self.comments == []


def race(text: str) -> RaceReport:
    """A race in which this text stands wherever a branch, a sandbox or a service could put one."""
    states: tuple[BranchStatus, ...] = ("ok", "failed", "timed_out", "cancelled", "not_started")
    branches = tuple(
        BranchReport(
            name=f"{text}{index}",
            index=index,
            status=status,
            score=1.0 if status == "ok" else None,
            exit_code=0,
            reason=text,
            boot_seconds=0.25,
            run_seconds=1.5,
            stdout_tail=text,
            stderr_tail=text,
            judge_tail=text,
            artifacts=(Artifact(path=text, size=12_345, truncated=text), Artifact(path="small", size=2, base64="aGk=")),
            artifacts_reason=text,
            params={"name": text},
            scores={text: 1.0},
            failing=(text,),
            diff=text,
            diff_reason=text,
        )
        for index, status in enumerate(states)
    )
    return RaceReport(
        race_id=text,
        winner=branches[0].name,
        branches=branches,
        checkpoint=text,
        promotion=PromotionReport(kind="workspace", done=False, reason=text, conflicts=(text,), skipped=(text,)),
        reaped=(text,),
        leftovers=(text,),
        timeline=(
            RaceSpan(phase="checkpoint", branch=None, start=0.0, end=1.0),
            RaceSpan(phase="run", branch=branches[0].name, start=1.0, end=2.0),
            RaceSpan(phase="run", branch=branches[1].name, start=1.0, end=4.0),
        ),
        speedup=1.5,
        seconds=4.0,
        deadline_passed=True,
    )


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_names_and_outputs_are_text_and_nothing_else(attack: str) -> None:
    page = ParsedReport(render(race(attack)))
    page.check_inert()
    assert page.text.count(attack) > 20


@settings(max_examples=60)
@given(st.text(max_size=60))
def test_no_text_at_all_becomes_markup(text: str) -> None:
    html = render(race(text))
    ParsedReport(html).check_inert()
    assert not any(ord(character) < 32 and character not in "\n\t" for character in html)
    assert html.encode()  # no half characters


def test_its_own_policy_allows_the_style_sheet_by_digest_and_nothing_else() -> None:
    html = render(race("x"))
    sheet = html.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert ParsedReport(html).metas["Content-Security-Policy"] == POLICY == policy
    assert html.index("Content-Security-Policy") < html.index("<style>")


def test_it_asks_for_nothing_from_elsewhere() -> None:
    html = render(race("x"))
    assert not [word for word in ("http:", "https:", "//", "url(", "@import", "src=", "href=") if word in html]


def test_it_is_made_for_phones_and_for_the_dark() -> None:
    assert ParsedReport(render(race("x"))).metas["viewport"] == "width=device-width, initial-scale=1"
    assert "@media (max-width: 600px)" in STYLE
    assert "@media (prefers-color-scheme: dark)" in STYLE


def test_it_says_all_that_the_report_says() -> None:
    text = ParsedReport(render(race("word"), asked())).text
    for said in (
        "word0 won",
        "Not promoted (workspace): word.",
        "deadline",
        "reconciler",
        "12,345 bytes",
        "small",
        "timed out",
        "not started",
        "session sesn_1",
        "file, lower is better, 2 ends the race",
        "1.5 ×",
        "checkpoint 0.00 to 1.00 s",
    ):
        assert said in text, said


def asked() -> RaceRequest:
    judge = FileJudge(type="file", path="score")
    return RaceRequest(
        source=Source(session_id="sesn_1"), n=5, script="x", judge=judge, higher_is_better=False, accept=2.0
    )


def test_a_bar_stands_where_its_time_was() -> None:
    html = render(race("x"))
    assert '<rect class="run" x="250.0" y="0" width="250.0" height="16"/>' in html
    assert '<rect class="run" x="250.0" y="0" width="750.0" height="16"/>' in html


def test_a_dry_run_has_a_page_too() -> None:
    branch = BranchReport(name="a", index=0, status="not_started")
    empty = RaceReport(
        race_id="r",
        winner=None,
        branches=(branch,),
        checkpoint=None,
        reaped=(),
        leftovers=(),
        timeline=(),
        seconds=0.0,
        dry_run=True,
    )
    page = ParsedReport(render(empty))
    page.check_inert()
    assert "Nobody won" in page.text and "dry run" in page.text and "It wrote nothing." in page.text
