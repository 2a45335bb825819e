"""The built-in brain: follows a script or the small grammar, and says that it is no model."""

from __future__ import annotations

from infra.local.claude.brain import Conversation, Reply, ToolOutcome
from infra.local.claude.grammar import HELP, ScriptedCalls, parse
from infra.local.claude.scripts import Script, ScriptedTurn, inline_turn, problems

SIGNATURE = "(I am a scripted brain, not a model.)"
_QUOTE_LIMIT = 2000


class ScriptedBrain:
    """Stateless: where a turn stands is read off the rounds it already had."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()

    async def respond(self, conversation: Conversation) -> Reply:
        try:
            turn: ScriptedTurn | None = inline_turn(conversation.message)
        except ValueError as error:
            return Reply(text=f"{SIGNATURE} That script is not right: {problems(error)}")
        turn = turn or self.script.turn_for(conversation)
        if turn is not None:
            return turn.respond(conversation)
        plan = parse(conversation.message)
        if not plan.calls:
            return Reply(text=_help(conversation))
        step = len(conversation.rounds)
        if step < len(plan.calls):
            return Reply(thinking=step == 0, calls=[plan.calls[step]])
        return Reply(text=_account(plan, conversation))


def _help(conversation: Conversation) -> str:
    tools = ", ".join(conversation.tools) or "none"
    return f"{SIGNATURE} I do not understand that. I understand lines like these:\n{HELP}\nThis agent's tools: {tools}."


def _account(plan: ScriptedCalls, conversation: Conversation) -> str:
    """What was done and what the tools answered, quoted."""
    outcomes = [outcome for done in conversation.rounds for outcome in done.outcomes]
    lines = [_quoted(outcome) for outcome in outcomes]
    if plan.ignored:
        lines.append(f"I did not understand {len(plan.ignored)} other line(s), beginning with: {plan.ignored[0][:80]}")
    return "\n".join([*lines, SIGNATURE])


def _quoted(outcome: ToolOutcome) -> str:
    call = outcome.call
    subject = next((str(call.input[key]) for key in _SUBJECTS if key in call.input), "")
    text = outcome.text.rstrip("\n")
    if len(text) > _QUOTE_LIMIT:
        text = f"{text[:_QUOTE_LIMIT]}\n[{len(text) - _QUOTE_LIMIT} more characters]"
    verb = "failed" if outcome.is_error else "returned"
    separator = "\n" if "\n" in text else " "
    return f"{call.name} {subject}".strip() + f" {verb}:{separator}{text}"


_SUBJECTS = ("command", "file_path", "pattern", "query", "url")
