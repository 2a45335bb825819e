"""A certification as a page for people and as JSON, which the offline platform takes (infra/local/certification.py).

Both are in docs/certified as `<where>-<version>`: one report for each place and version, however many runs it took. A
check that was made again replaces what it said before.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from infra.cli.certify.check import CheckResult, ServiceCheck
from infra.cli.certify.observation import CheckVerdict
from infra.cli.certify.unknowns import UNKNOWNS

_MARKS: Final = {CheckVerdict.HOLDS: "holds", CheckVerdict.DIFFERS: "**differs**", CheckVerdict.UNKNOWN: "not known"}
_ROW: Final = {"id", "anchor", "assumed", "verdict", "seen", "otherwise", "seconds", "at", "behaviour"}


def as_data(
    results: Sequence[CheckResult], *, where: str, version: str, at: datetime, left_over: Sequence[str]
) -> dict[str, Any]:
    """The JSON report of one run: {"where", "version", "at", "seconds", "checks": [...], "not_made", "behaviour",
    "left_over", "untried"}. `behaviour`: {"claude": knobs, "tensorlake": settings} with which the offline platform
    behaves as was seen. `not_made`: checks that no run made yet."""
    rows = [
        {
            "id": result.check.id,
            "anchor": result.check.anchor,
            "assumed": result.check.assumed,
            "verdict": result.observed.verdict.value,
            "seen": result.observed.seen,
            "otherwise": result.check.otherwise,
            "seconds": round(result.seconds, 1),
            "at": at.isoformat(timespec="seconds"),
            "behaviour": dict(result.observed.behaviour),
        }
        for result in results
    ]
    return {
        "where": where,
        "version": version,
        "at": at.isoformat(timespec="seconds"),
        "left_over": list(left_over),
        "untried": [{"matter": each.matter, "anchor": each.anchor, "why": each.why} for each in UNKNOWNS if each.why],
        **_of_rows(rows, ()),
    }


def _of_rows(rows: Sequence[Mapping[str, Any]], known: Sequence[ServiceCheck]) -> dict[str, Any]:
    behaviour: dict[str, dict[str, Any]] = {"claude": {}, "tensorlake": {}}
    for row in rows:
        for name, value in row["behaviour"].items():
            side, _, knob = name.partition(".")
            behaviour[side][knob] = value
    made = {row["id"] for row in rows}
    return {
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "checks": list(rows),
        "not_made": [check.id for check in known if check.id not in made],
        "behaviour": behaviour,
    }


def united(data: Mapping[str, Any], known: Sequence[ServiceCheck], folder: Path) -> dict[str, Any]:
    """The run with what earlier ones say of the same place and version: of checks that it did not make, that are
    `known` still and assume what they did. Their order is that of `known`. A file that cannot be read says nothing."""
    assumed = {check.id: check.assumed for check in known}
    earlier: list[dict[str, Any]] = []
    try:
        for row in json.loads(_files(data, folder)[1].read_text(encoding="utf-8"))["checks"]:
            if row.keys() >= _ROW and assumed.get(row["id"]) == row["assumed"]:
                earlier.append(row)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        earlier = []
    rows = {row["id"]: row for row in (*earlier, *data["checks"])}
    order = {check.id: number for number, check in enumerate(known)}
    return {**data, **_of_rows(sorted(rows.values(), key=lambda row: order[row["id"]]), known)}


def as_page(data: Mapping[str, Any]) -> str:
    """Markdown."""
    counts = Counter(row["verdict"] for row in data["checks"])
    told = ", ".join(f"{verdict.value}: {counts[verdict.value]}" for verdict in CheckVerdict if counts[verdict.value])
    lines = [
        f"# Certification of {data['where']}",
        "",
        f"Version {data['version']}, {data['at']}, {data['seconds']:g} s. {told.capitalize()}. Made by `make certify`.",
        "",
        "| check | assumed | seen | verdict | seconds | day |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row['id']}` ({row['anchor']}) | {_cell(row['assumed'])} | {_cell(row['seen'])} "
        f"| {_MARKS[CheckVerdict(row['verdict'])]} | {row['seconds']:g} | {row['at'][:10]} |"
        for row in data["checks"]
    ]
    differ = [row for row in data["checks"] if row["verdict"] == CheckVerdict.DIFFERS.value]
    if differ:
        lines += ["", "## What changes", ""]
        lines += [f"- `{row['id']}`: {row['otherwise']}." for row in differ]
    if data["not_made"]:
        lines += ["", "## Not made yet", "", *(f"- `{each}`" for each in data["not_made"])]
    lines += ["", "## Not tried", ""]
    lines += [f"- {row['matter']} ({row['anchor']}): {row['why']}." for row in data["untried"]]
    if data["left_over"]:
        lines += ["", "## Left over", "", *(f"- {_cell(each)}" for each in data["left_over"])]
    return "\n".join(lines) + "\n"


def write(data: Mapping[str, Any], known: Sequence[ServiceCheck], folder: Path) -> tuple[Path, Path]:
    """Both files, with what they said before of other checks (`united`); returns their paths, Markdown first."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = united(data, known, folder)
    page, rows = _files(data, folder)
    page.write_text(as_page(whole), encoding="utf-8")
    rows.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return page, rows


def _files(data: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    place = "".join(letter if letter.isalnum() else "-" for letter in data["where"].lower()).strip("-")
    stem = f"{place}-{data['version']}"
    return folder / f"{stem}.md", folder / f"{stem}.json"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
