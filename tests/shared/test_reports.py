"""A report is JSON whatever texts a sandbox put into it."""

from __future__ import annotations

import json

from shared.reports import DrainEnd, DrainReport, ItemEnd, ItemReport, TickReport, to_json


def test_a_report_with_half_a_character_in_a_reason_is_still_json() -> None:
    item = ItemReport("work_1", "sesn_1", ItemEnd.FAILED, 1.0, reason="the sandbox said \ud800")
    drain = DrainReport("env_1", DrainEnd.EMPTY, 0.5, 1, [item])
    report = json.loads(to_json(TickReport([drain], [], 1.5)))
    assert report["drains"][0]["items"][0]["reason"] == "the sandbox said ?"
    assert report["drains"][0]["end"] == "empty"


def test_a_report_is_the_same_by_either_way() -> None:
    good = ItemReport("work_1", "sesn_1", ItemEnd.FAILED, 1.0, reason="ż")
    whole = json.loads(to_json({"drains": [DrainReport("env_1", DrainEnd.EMPTY, 0.5, 1, [good])]}))
    halved = json.loads(to_json({"drains": [DrainReport("env_1", DrainEnd.EMPTY, 0.5, 1, [good], "\ud800")]}))
    assert halved["drains"][0]["items"] == whole["drains"][0]["items"]
    assert halved["drains"][0]["environment_id"] == whole["drains"][0]["environment_id"]
