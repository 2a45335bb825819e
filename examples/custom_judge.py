"""A judge of your own: the branch whose program is shortest wins, if its tests pass.

    OPERATOR_CODE=examples/custom_judge.py RACE_JUDGES=shortest=custom_judge:shortest .venv/bin/hands serve

A request then says `"judge": {"type": "plugin", "name": "shortest", "options": {"file": "answer.py"}}` and
`"higher_is_better": false`. What a judge may do: shared/races/plugins.py
"""

from __future__ import annotations

from shared.races.plugins import JudgeContext, JudgeFailed


async def shortest(context: JudgeContext) -> float:
    """The size of a file in bytes. `options` come from the request, so they are checked like any input."""
    name = context.options.get("file")
    if not isinstance(name, str) or name.startswith(("-", "/")):
        raise JudgeFailed("options.file must be a relative path")
    if context.exit_code != 0:
        raise JudgeFailed("the branch's own program failed")
    checked = await context.run(["python3", "-I", "-m", "py_compile", name], timeout=20)
    if checked.exit_code != 0:
        raise JudgeFailed(f"{name} is not Python")
    return float(len(await context.read_file(name)))
