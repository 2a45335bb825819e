"""Scripts: turns and tool calls written down in YAML, for tests and demos.

    turns:
      - when: "deploy"                  # optional: a regular expression the message must match
        rounds:
          - thinking: true
            say: "Looking around."
            calls:                      # several calls of one round are made in parallel
              - {tool: bash, input: {command: ls}}
              - {tool: get_order, input: {order_id: "7"}}
              - {tool: web_search, input: {query: weather}, result: "sunny"}
          - say: "Done: {last}"         # {last}: the text of the last result; {results}: all of them
            seconds: 0.2
          - fail: {type: model_overloaded_error, message: busy, retry: retrying, times: 2}

A turn is taken for a message it matches; each turn is used once per session and in order, unless `repeat: true`.
The last round must have no calls; if it has some, a closing round that quotes the results is added. A message that
begins with a line `script:` brings the rounds of its own turn along.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from infra.local.claude.brain import Conversation, Failure, Reply, ToolCall

INLINE = "script:"


def _compilable(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ScriptedCall(_Strict):
    tool: str
    input: dict[str, Any] = {}
    result: str | None = None


class ScriptedFailure(_Strict):
    type: str = "unknown_error"
    message: str = "scripted failure"
    retry: Annotated[str, Field(pattern="^(retrying|exhausted|terminal)$")] = "exhausted"
    times: int = Field(1, ge=1)


class ScriptedRound(_Strict):
    say: str | None = None
    thinking: bool = False
    calls: list[ScriptedCall] = []
    seconds: float = Field(0.0, ge=0.0)
    fail: ScriptedFailure | None = None


class ScriptedTurn(_Strict):
    when: Annotated[str, AfterValidator(_compilable)] | None = None
    repeat: bool = False
    rounds: list[ScriptedRound] = Field(min_length=1)

    def matches(self, message: str) -> bool:
        return self.when is None or re.search(self.when, message) is not None

    def respond(self, conversation: Conversation) -> Reply:
        index = len(conversation.rounds)
        if index >= len(self.rounds):
            return Reply(text=_filled("{results}", conversation))
        scripted = self.rounds[index]
        failure = scripted.fail
        if failure is not None and (failure.retry != "retrying" or conversation.attempt < failure.times):
            return Reply(failure=Failure(failure.type, failure.message, failure.retry))
        return Reply(
            text=None if scripted.say is None else _filled(scripted.say, conversation),
            thinking=scripted.thinking,
            calls=[ToolCall(call.tool, call.input, call.result) for call in scripted.calls],
            seconds=scripted.seconds,
        )


class Script(_Strict):
    turns: list[ScriptedTurn] = []

    def turn_for(self, conversation: Conversation) -> ScriptedTurn | None:
        """Replays the session's messages, so that nothing has to be remembered between requests."""
        used: set[int] = set()
        chosen: ScriptedTurn | None = None
        for message in (*conversation.earlier_messages, conversation.message):
            chosen = None
            for number, turn in enumerate(self.turns):
                if number not in used and turn.matches(message):
                    if not turn.repeat:
                        used.add(number)
                    chosen = turn
                    break
        return chosen


def load_script(text: str) -> Script:
    """A script file's content; raises ValueError with all that is wrong."""
    return Script.model_validate(_yaml(text, "turns"))


def inline_turn(message: str) -> ScriptedTurn | None:
    """The turn that a `script:` message carries; raises ValueError if it is not one."""
    first, _, rest = message.strip().partition("\n")
    if first.strip() != INLINE:
        return None
    return ScriptedTurn.model_validate(_yaml(rest, "rounds"))


def _yaml(text: str, key: str) -> Any:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error
    return {key: content} if isinstance(content, list) else content or {}


def problems(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return str(error)


def _filled(text: str, conversation: Conversation) -> str:
    outcomes = [outcome for done in conversation.rounds for outcome in done.outcomes]
    last = outcomes[-1].text if outcomes else ""
    return text.replace("{last}", last).replace("{results}", "\n".join(o.text for o in outcomes))
