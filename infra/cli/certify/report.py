"""A certification as a page for people and as JSON, which the offline platform takes (infra/local/certification.py).

Both are in docs/certified as `<where>-<version>`: one report for each place and version, however many runs it took. A
check that was made again replaces what it said before; one that could not be made replaces nothing that was seen. Each
says which state of the code made it (`own_code`).
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
    results: Sequence[CheckResult],
    *,
    where: str,
    version: str,
    code: str,
    at: datetime,
    left_over: Sequence[str] = (),
    wanted: Sequence[ServiceCheck] = (),
) -> dict[str, Any]:
    """The JSON report of one run: {"where", "version", "code", "at", "seconds", "checks": [...], "not_made",
    "not_asked", "unfinished", "behaviour", "left_over", "untried"}. `behaviour`: {"claude": knobs, "tensorlake":
    settings} with which the offline platform behaves as was seen. `not_made`: checks that no run made yet, `not_asked`:
    and that are made only where they are asked for. `unfinished`: those that an interrupted run was to make (`wanted`),
    and that none made since."""
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
            "code": code,
        }
        for result in results
    ]
    made = {row["id"] for row in rows}
    return {
        "where": where,
        "version": version,
        "code": code,
        "at": at.isoformat(timespec="seconds"),
        "left_over": list(left_over),
        "untried": [{"matter": each.matter, "anchor": each.anchor, "why": each.why} for each in UNKNOWNS if each.why],
        "unfinished": [check.id for check in wanted if check.id not in made],
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
        "not_made": [check.id for check in known if check.id not in made and not check.asked],
        "not_asked": [check.id for check in known if check.id not in made and check.asked],
        "behaviour": behaviour,
    }


def united(data: Mapping[str, Any], known: Sequence[ServiceCheck], folder: Path) -> dict[str, Any]:
    """The run with what earlier ones say of the same place and version: of checks that it did not make or could not,
    that are `known` still and assume what they did. Their order is that of `known`. A file that cannot be read says
    nothing."""
    before = _before(data["where"], data["version"], folder)
    rows = {row["id"]: row for row in _rows(before, known)}
    for row in data["checks"]:
        if row["verdict"] != CheckVerdict.UNKNOWN.value or row["id"] not in rows:
            rows[row["id"]] = row
    made = {row["id"] for row in data["checks"]}
    unfinished = {*data["unfinished"], *(before.get("unfinished") or ())} - made
    order = {check.id: number for number, check in enumerate(known)}
    return {
        **data,
        "unfinished": [check.id for check in known if check.id in unfinished],
        **_of_rows(sorted(rows.values(), key=lambda row: order[row["id"]]), known),
    }


def rest(known: Sequence[ServiceCheck], where: str, version: str, code: str, folder: Path) -> set[str]:
    """The `known` checks that the report of this place and version has not of this code, and those that an interrupted
    run did not come to."""
    before = _before(where, version, folder)
    made = {row["id"] for row in _rows(before, known) if row.get("code") == code}
    return {check.id for check in known} - made | set(before.get("unfinished") or ())


def _before(where: str, version: str, folder: Path) -> Mapping[str, Any]:
    """What the file says already; nothing where it cannot be read."""
    try:
        data = json.loads(_files(where, version, folder)[1].read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _rows(before: Mapping[str, Any], known: Sequence[ServiceCheck]) -> list[dict[str, Any]]:
    """Those of checks that are known still and assume what they did."""
    assumed = {check.id: check.assumed for check in known}
    return [
        row
        for row in before.get("checks") or ()
        if isinstance(row, dict) and row.keys() >= _ROW and assumed.get(row["id"]) == row["assumed"]
    ]


def as_page(data: Mapping[str, Any]) -> str:
    """Markdown."""
    counts = Counter(row["verdict"] for row in data["checks"])
    told = ", ".join(f"{verdict.value}: {counts[verdict.value]}" for verdict in CheckVerdict if counts[verdict.value])
    lines = [
        f"# Certification of {data['where']}",
        "",
        f"Version {data['version']}, code {data['code']}, {data['at']}, {data['seconds']:g} s. {told.capitalize()}. "
        "Made by `make certify`.",
        "",
        "| check | assumed | seen | verdict | seconds | day |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row['id']}` ({row['anchor']}) | {_cell(row['assumed'])} | {_cell(row['seen'])} "
        f"| {_MARKS[CheckVerdict(row['verdict'])]} | {row['seconds']:g} "
        f"| {row['at'][:10]}{'' if row.get('code') == data['code'] else ', earlier code'} |"
        for row in data["checks"]
    ]
    differ = [row for row in data["checks"] if row["verdict"] == CheckVerdict.DIFFERS.value]
    if differ:
        lines += ["", "## What changes", ""]
        lines += [f"- `{row['id']}`: {row['otherwise']}." for row in differ]
    if data["unfinished"]:
        lines += ["", "## A run was interrupted before", "", *(f"- `{each}`" for each in data["unfinished"])]
    if data["not_made"] or data["not_asked"]:
        asked = [f"- `{each}`, which is made where it is asked for" for each in data["not_asked"]]
        lines += ["", "## Not made yet", "", *(f"- `{each}`" for each in data["not_made"]), *asked]
    lines += ["", "## Not tried", ""]
    lines += [f"- {row['matter']} ({row['anchor']}): {row['why']}." for row in data["untried"]]
    if data["left_over"]:
        lines += ["", "## Left over", "", *(f"- {_cell(each)}" for each in data["left_over"])]
    return "\n".join(lines) + "\n"


def write(data: Mapping[str, Any], known: Sequence[ServiceCheck], folder: Path) -> tuple[Path, Path]:
    """Both files, with what they said before of other checks (`united`); returns their paths, Markdown first."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = united(data, known, folder)
    page, rows = _files(data["where"], data["version"], folder)
    _replace(rows, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    _replace(page, as_page(whole))
    return page, rows


def _replace(path: Path, text: str) -> None:
    """Whole or not at all, whatever ends this process."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _files(where: str, version: str, folder: Path) -> tuple[Path, Path]:
    place = "".join(letter if letter.isalnum() else "-" for letter in where.lower()).strip("-")
    stem = f"{place}-{version}"
    return folder / f"{stem}.md", folder / f"{stem}.json"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
