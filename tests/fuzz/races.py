"""Bodies for fork_best_of_n: races that run, and the same with one or two fields of the model gone wrong.

The fields come from the schema of the real model, so a new one is fuzzed without a word here.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from hypothesis import strategies as st

from shared.races.request import RaceRequest
from tests.fuzz.properties import BODY_CANARY
from tests.fuzz.stage import ENVIRONMENT, SESSIONS, SNAPSHOT
from tests.fuzz.wire import ANYTHING, ODD_VALUES, Json, Twice

Path = tuple[str | int, ...]
"""Where a value is: keys of objects and places in lists; a made-up key where any key may stand."""

_ANY_KEY: Final = "KEY"
_PROGRAMS: Final = (
    {"command": ["true"]},
    {"command": ["fail", "{i}"]},
    {"command": ["score", "{i}"]},
    {"script": f"echo {BODY_CANARY} {{i}}"},
    {"command": ["sleep", "20"]},
)
_SOURCES: Final = (
    *({"session_id": session} for session in SESSIONS),
    {"session_id": "sesn_nobodys"},
    {"session_id": "no-session-id"},
    {"snapshot_id": SNAPSHOT},
    {"snapshot_id": "unknown"},
    {"image": "agent-cli"},
)
_FILES: Final = (
    {"a.txt": BODY_CANARY},
    {"deep/er/x": {"base64": "AAECAw==", "executable": True}, "y": {"text": "ü"}},
)
_SCORES: Final = ("1", "-0", "nan", "1e999", "none", "9" * 400)
_BASES: Final[tuple[Mapping[str, Any], ...]] = (
    {"source": {"session_id": "sesn_running"}, "n": 2, "command": ["true"]},
    {"source": {"image": "agent-cli"}, "branches": [{"name": "one", "script": "true", "stdin": "x", "timeout": 5}]},
    {
        "source": {"snapshot_id": SNAPSHOT},
        "setup": "true",
        "n": 1,
        "script": "true",
        "judge": {"type": "command", "script": "score 0.5", "timeout": 9.5},
    },
)


@cache
def fields() -> tuple[Path, ...]:
    """Every place of the model at which a value may stand, objects and lists included."""
    schema = RaceRequest.model_json_schema()
    return tuple(dict.fromkeys(_walk(schema, schema.get("$defs", {}), ())))


def _walk(node: Mapping[str, Any], definitions: Mapping[str, Any], path: Path) -> Iterator[Path]:
    if "$ref" in node:
        node = definitions[node["$ref"].rsplit("/", 1)[-1]]
    yield path
    for other in [*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())]:
        yield from _walk(other, definitions, path)
    for name, inner in node.get("properties", {}).items():
        yield from _walk(inner, definitions, (*path, name))
    if isinstance(inner := node.get("additionalProperties"), Mapping):
        yield from _walk(inner, definitions, (*path, _ANY_KEY))
    for index, inner in enumerate([*node.get("prefixItems", ()), *([node["items"]] if "items" in node else [])]):
        yield from _walk(inner, definitions, (*path, index))


def base_for(path: Path) -> Mapping[str, Any]:
    """A good race in which a value at this place is read, and not refused for what stands beside it."""
    match path[:1]:
        case ("branches",):
            return _BASES[1]
        case ("judge",) | ("setup",) | ("setup_timeout",) | ("script",):
            return _BASES[2]
        case _:
            return _BASES[0]


def put(document: Mapping[str, Any], path: Path, value: Json) -> Json:
    """A copy with `value` at `path`, whatever was on the way there."""
    if not path:
        return value
    changed: Any = copy.deepcopy(document)
    holder = changed
    for here, following in itertools.pairwise(path):
        held = _get(holder, here)
        if not isinstance(held, list if isinstance(following, int) else dict):
            held = [] if isinstance(following, int) else {}
            _set(holder, here, held)
        holder = held
    _set(holder, path[-1], value)
    return changed


def _get(holder: Any, key: str | int) -> Any:
    if isinstance(holder, list):
        return holder[key] if isinstance(key, int) and key < len(holder) else None
    return holder.get(key)


def _set(holder: Any, key: str | int, value: Json) -> None:
    if isinstance(holder, list) and isinstance(key, int):
        holder[key:] = [value, *holder[key + 1 :]]
    else:
        holder[key] = value


@st.composite
def programs(draw: st.DrawFn) -> dict[str, Any]:
    program: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(_PROGRAMS)))
    extras = draw(st.integers(0, 7))
    if extras & 1:
        program["files"] = copy.deepcopy(draw(st.sampled_from(_FILES)))
    if extras & 2:
        program["env"] = {"SOME_VALUE": BODY_CANARY}
    return program


@st.composite
def races(draw: st.DrawFn) -> dict[str, Any]:
    """A request that the model takes. What it names may not be there."""
    race: dict[str, Any] = {"source": dict(draw(st.sampled_from(_SOURCES)))}
    if draw(st.booleans()):
        race |= draw(programs())
        race["n"] = draw(st.integers(1, 3) | st.sampled_from([16, 17, 64]))
    else:
        race["branches"] = [
            {"name": f"b{index}", **draw(programs()), **draw(st.sampled_from([{}, {"timeout": 5}, {"stdin": "in"}]))}
            for index in range(draw(st.integers(1, 3)))
        ]
    if draw(st.booleans()):
        race["judge"] = draw(
            st.sampled_from([{"type": "exit_code"}, {"type": "command", "command": ["true"], "timeout": 5}])
            | st.sampled_from(_SCORES).map(lambda score: {"type": "command", "command": ["score", score]})
        )
    options: Mapping[str, st.SearchStrategy[Any]] = {
        "setup": st.sampled_from(["true", "fail", "sleep"]),
        "accept": st.sampled_from([0, 1, -1e308]),
        "min_score": st.sampled_from([0.5, 1e308]),
        "max_parallel": st.sampled_from([1, 2, 16, 64]),
        "branch_timeout": st.sampled_from([0.001, 5, 86400]),
        "deadline": st.sampled_from([0.01, 5, 900, 901]),
        "higher_is_better": st.booleans(),
        "dry_run": st.booleans(),
        "environment_id": st.sampled_from([ENVIRONMENT, "env_2"]),
        "checkpoint": st.sampled_from(["filesystem", "memory", "live"]),
        "promote": st.sampled_from(["none", "workspace"]),
    }
    for name in draw(st.lists(st.sampled_from(sorted(options)), max_size=2, unique=True)):
        race[name] = draw(options[name])
    return race


@st.composite
def spoiled_races(draw: st.DrawFn) -> Json:
    """A race in which one or two fields hold something else, are written twice, or have an unknown field beside
    them."""
    race: Json = draw(races())
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(fields()))
        value = draw(ANYTHING)
        match draw(st.integers(0, 5)):
            case 0 if path:
                path = (*path[:-1], draw(st.sampled_from(["", "__class__", "type", "source", "n", "constructor"])))
            case 1:
                value = Twice(value, draw(ANYTHING))
        race = put(race if isinstance(race, dict) else {}, path, value)
    return race


def every_wrong_value() -> Iterator[tuple[Path, Json]]:
    """Each odd value at each field of a race that is good otherwise."""
    for path in fields():
        for value in ODD_VALUES:
            yield path, put(base_for(path), path, value)
