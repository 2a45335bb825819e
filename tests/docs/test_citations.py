"""Whatever the code or a page names is there: a page, an anchor in it, a path, a test."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from tests.support.checkout import ROOT

_FOLDERS = "docs|examples|functions|image|infra|requirements|shared|tests"
_PAPERS = "CHANGELOG|CONTRIBUTING|README|SECURITY"
_PATH = re.compile(rf"(?<![\w/.~-])((?:{_FOLDERS})/[\w./-]*[\w/]|(?:{_PAPERS})\.md)(?:#([\w-]+))?")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_TEST = re.compile(r"(?<![\w/.])(?<!def )(test_[a-z0-9_]{12,})(?!\w|\.py|/)")


def tracked(*patterns: str) -> list[Path]:
    shown = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in shown.stdout.decode().split("\0") if name and (ROOT / name).exists()]


def anchors(page: Path) -> set[str]:
    """As GitHub and the site's generator make them of headings."""
    return _anchors(page.read_text(encoding="utf-8"))


@cache
def _anchors(text: str) -> set[str]:
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE):
        bare = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").replace("*", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", bare).replace(" ", "-")
        number = next(i for i in range(1000) if (f"{slug}-{i}" if i else slug) not in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


@cache
def prose(path: Path) -> Sequence[str]:
    """Comments and docstrings of a module, the whole of any other file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return (text,)
    docstrings = [
        ast.get_docstring(node, clean=False) or ""
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    comments = [
        (token.start, token.string.lstrip("#: "))
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    return (*docstrings, "\n".join(text for _, text in comments))


PROSE = tracked(
    "*.py", "*.md", "*.yaml", "*.yml", "*.sh", "*.service", "*.toml", "Makefile", "Dockerfile", ".env*example"
)


def said(pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    """What the prose of all files has of it. To tell prose from code takes long, so only where there is any at all."""
    for path in PROSE:
        if pattern.search(path.read_text(encoding="utf-8")):
            yield from ((path, match) for text in prose(path) for match in pattern.finditer(text))


@cache
def names_of_tests() -> frozenset[str]:
    return frozenset(
        name
        for path in tracked("tests/*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
    )


def wrong_paths(path: Path) -> Iterator[str]:
    for text in prose(path) if _PATH.search(path.read_text(encoding="utf-8")) else ():
        for name, anchor in _PATH.findall(text):
            target = ROOT / name.rstrip(".")
            if not re.search(r"\.\w+$|/$", name) and "`" + name not in text:
                continue  # a pair of words
            if not (target.exists() or list(ROOT.glob(f"{name.rstrip('.')}*"))):
                yield f"{name} does not exist"
            elif anchor and anchor not in anchors(target):
                yield f"{name} has no anchor {anchor}"


def wrong_links(path: Path) -> Iterator[str]:
    """Relative links of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in _LINK.findall(text):
        name, _, anchor = link.partition("#")
        if "://" in link or name.startswith("mailto:"):
            continue
        target = (path.parent / name).resolve() if name else path
        if not target.exists():
            yield f"the link {link} leads nowhere"
        elif anchor and anchor not in anchors(target):
            yield f"the link {link} leads to no anchor"


def test_each_path_and_anchor_that_is_named_exists() -> None:
    assert [f"{path.relative_to(ROOT)}: {wrong}" for path in PROSE for wrong in wrong_paths(path)] == []


def test_each_link_of_a_page_leads_somewhere() -> None:
    assert [f"{path.relative_to(ROOT)}: {wrong}" for path in tracked("*.md") for wrong in wrong_links(path)] == []


def test_each_test_that_prose_names_exists() -> None:
    named = {match[1]: path for path, match in said(_TEST)}
    assert len(named) > 20
    modules = {path.stem for path in tracked("tests/*.py")}
    assert {name: path for name, path in named.items() if name not in names_of_tests() | modules} == {}


def test_each_rule_names_the_tests_that_prove_it() -> None:
    rules = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("\n## Rules\n")[1]
    sections = re.split(r"^### (I\d+)$", rules, flags=re.MULTILINE)[1:]
    assert sections[::2] == [f"I{number}" for number in range(1, 11)]
    for rule, text in zip(sections[::2], sections[1::2], strict=True):
        assert _TEST.search(text.split("Proof:")[1]), rule


def test_no_citation_of_old_is_left() -> None:
    """By name and number, to pages that are not in the repository."""
    old = re.compile(
        r"\b[Cc]ontract (?:claude|tensorlake|runtimes|sections?|\d)|\(design[ :]|\(trap T\d|\(sections? \d"
    )
    here = Path(__file__)
    assert [str(path) for path, _ in said(old) if path != here] == []


def test_an_anchor_and_a_path_that_are_not_there_are_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n\ndocs/nowhere.md and docs/architecture.md#i99 and [here](#two) and [there](gone.md)\n")
    assert list(wrong_paths(page)) == ["docs/nowhere.md does not exist", "docs/architecture.md has no anchor i99"]
    assert list(wrong_links(page)) == ["the link #two leads to no anchor", "the link gone.md leads nowhere"]
