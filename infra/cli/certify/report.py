"""A certification as a page for people and as JSON, which the offline platform takes (infra/local/certification.py).

Both go into docs/certified as `<day>-<where>-<version>`, in UTC; the time follows the day where there is one already.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from infra.cli.certify.check import Result
from infra.cli.certify.observation import Verdict
from infra.cli.certify.unknowns import UNKNOWNS

_MARKS: Final = {Verdict.HOLDS: "holds", Verdict.DIFFERS: "**differs**", Verdict.UNKNOWN: "not known"}


def behaviour_of(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """{"claude": knobs, "tensorlake": settings} with which the offline platform behaves as was seen."""
    behaviour: dict[str, dict[str, Any]] = {"claude": {}, "tensorlake": {}}
    for result in results:
        for name, value in result.observed.behaviour.items():
            side, _, knob = name.partition(".")
            behaviour[side][knob] = value
    return behaviour


def as_data(
    results: Sequence[Result], *, where: str, version: str, at: datetime, left_over: Sequence[str]
) -> dict[str, Any]:
    """The JSON report: {"where", "version", "at", "seconds", "checks": [...], "behaviour", "left_over", "untried"}."""
    return {
        "where": where,
        "version": version,
        "at": at.isoformat(timespec="seconds"),
        "seconds": round(sum(result.seconds for result in results), 1),
        "checks": [
            {
                "id": result.check.id,
                "anchor": result.check.anchor,
                "assumed": result.check.assumed,
                "verdict": result.observed.verdict.value,
                "seen": result.observed.seen,
                "otherwise": result.check.otherwise,
                "seconds": round(result.seconds, 1),
            }
            for result in results
        ],
        "behaviour": behaviour_of(results),
        "left_over": list(left_over),
        "untried": [{"matter": each.matter, "anchor": each.anchor, "why": each.why} for each in UNKNOWNS if each.why],
    }


def as_page(data: Mapping[str, Any]) -> str:
    """Markdown."""
    counts = Counter(row["verdict"] for row in data["checks"])
    told = ", ".join(f"{verdict.value}: {counts[verdict.value]}" for verdict in Verdict if counts[verdict.value])
    lines = [
        f"# Certification of {data['where']}",
        "",
        f"Version {data['version']}, {data['at']}, {data['seconds']:g} s. {told.capitalize()}. Made by `make certify`.",
        "",
        "| check | assumed | seen | verdict | seconds |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row['id']}` ({row['anchor']}) | {_cell(row['assumed'])} | {_cell(row['seen'])} "
        f"| {_MARKS[Verdict(row['verdict'])]} | {row['seconds']:g} |"
        for row in data["checks"]
    ]
    differ = [row for row in data["checks"] if row["verdict"] == Verdict.DIFFERS.value]
    if differ:
        lines += ["", "## What changes", ""]
        lines += [f"- `{row['id']}`: {row['otherwise']}." for row in differ]
    lines += ["", "## Not tried", ""]
    lines += [f"- {row['matter']} ({row['anchor']}): {row['why']}." for row in data["untried"]]
    if data["left_over"]:
        lines += ["", "## Left over", "", *(f"- {_cell(each)}" for each in data["left_over"])]
    return "\n".join(lines) + "\n"


def write(data: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Both files, new ones; returns their paths, Markdown first."""
    folder.mkdir(parents=True, exist_ok=True)
    at = datetime.fromisoformat(data["at"])
    place = "".join(letter if letter.isalnum() else "-" for letter in data["where"].lower()).strip("-")
    stem = f"{at:%Y-%m-%d}-{place}-{data['version']}"
    if (folder / f"{stem}.json").exists():
        stem = f"{at:%Y-%m-%d-%H%M%S}-{place}-{data['version']}"
    page, rows = folder / f"{stem}.md", folder / f"{stem}.json"
    page.write_text(as_page(data), encoding="utf-8")
    rows.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return page, rows


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
