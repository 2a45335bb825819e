"""What a request may ask for here, by the settings (docs/races.md): said before anything is made.

What needs no setting is bounded in request.py.
"""

from __future__ import annotations

from shared.environment_settings import Environment
from shared.races import safe_regex
from shared.races.errors import BadRace
from shared.races.request import PluginJudge, RaceRequest, RegexJudge
from shared.settings import RaceLimits, Settings


def environment_for(request: RaceRequest, settings: Settings) -> Environment:
    """The environment that the request means. Raises BadRace where it means none, or does not say which of several."""
    if request.environment_id is not None:
        environment = settings.environments.get(request.environment_id)
        if environment is None:
            raise BadRace("environment_id", "no such environment is configured here")
        return environment
    if len(settings.environments) > 1:
        raise BadRace("environment_id", "several environments are configured here: say which")
    return next(iter(settings.environments.values()))


def check_limits(request: RaceRequest, limits: RaceLimits) -> None:
    """Raises BadRace for more than the settings allow."""
    if request.most_branches > limits.max_branches:
        over = "" if request.rounds == 1 else ", in all rounds together"
        raise BadRace(request.branches_field, f"at most {limits.max_branches} branches are allowed here{over}")
    if request.max_parallel is not None and request.max_parallel > limits.max_parallel:
        raise BadRace("max_parallel", f"at most {limits.max_parallel} are allowed here")
    at_once = request.max_parallel or limits.max_parallel
    if request.checkpoint == "live" and len(request.candidates()) > at_once:
        raise BadRace("checkpoint", f"live makes all branches at once, and at most {at_once} may be")
    for step, by in enumerate(step.judge for step in request.panel):
        if isinstance(by, PluginJudge) and by.name not in limits.judges:
            field = "judge.name" if request.judges is None else f"judges.{step}.judge.name"
            raise BadRace(field, "no such judge is configured here")
    if request.deadline is not None and request.deadline > limits.deadline:
        raise BadRace("deadline", f"at most {limits.deadline:g} seconds are allowed here")


async def check_pattern(by: RegexJudge) -> None:
    """Raises BadRace before anything is made."""
    try:
        await safe_regex.search(by.pattern, "", by.group)
    except (safe_regex.BadPattern, safe_regex.NotSearched) as error:
        raise BadRace("judge.regex.pattern", str(error)) from None
