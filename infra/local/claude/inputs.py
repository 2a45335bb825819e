"""Checks what a client sends to a session before any of it takes effect (docs/wire/anthropic.md#82-event-json)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.local.claude.errors import invalid
from infra.local.claude.sessions import OfflineSession

RESULT_TYPES = {"user.tool_result": "tool_use_id", "user.custom_tool_result": "custom_tool_use_id"}
MESSAGE_TYPES = ("user.message", "user.define_outcome")
INITIAL_TYPES = MESSAGE_TYPES
_BLOCKS = {
    "user.message": ("text", "image", "document"),
    "user.tool_result": ("text", "image", "document", "search_result"),
    "user.custom_tool_result": ("text", "image", "document", "search_result"),
    "system.message": ("text",),
}


def checked_events(body: Mapping[str, Any], name: str, session: OfflineSession | None) -> list[dict[str, Any]]:
    """The payloads in `body[name]`, each with the fields its event keeps; raises 400 for the first that is wrong.

    Without a session (creation) only the types of `initial_events` are allowed.
    """
    given = body.get(name)
    if not isinstance(given, list) or (session is not None and not given):
        raise invalid(f"{name}: expected a non-empty array")
    kinds = [entry.get("type") if isinstance(entry, Mapping) else None for entry in given]
    checked = []
    for index, entry in enumerate(given):
        where = f"{name}[{index}]"
        if not isinstance(entry, Mapping):
            raise invalid(f"{where}: expected an object")
        if session is None and entry.get("type") not in INITIAL_TYPES:
            raise invalid(f"{where}.type: expected one of {', '.join(INITIAL_TYPES)}")
        if entry.get("type") == "system.message":
            _check_place(kinds, index, where)
        checked.append(_checked(entry, where, session))
    return checked


def _checked(entry: Mapping[str, Any], where: str, session: OfflineSession | None) -> dict[str, Any]:
    match entry.get("type"):
        case "user.message" | "system.message" as kind:
            return {"type": kind, "content": _content(entry, kind, where, required=True)}
        case "user.define_outcome":
            if not isinstance(entry.get("description"), str) or not isinstance(entry.get("rubric"), Mapping):
                raise invalid(f"{where}: description and rubric are required")
            kept = ("type", "description", "rubric", "max_iterations")
            return {key: entry[key] for key in kept if key in entry}
        case "user.interrupt":
            thread = entry.get("session_thread_id")
            if thread is not None and session is not None and thread != session.thread_id:
                raise invalid(f"{where}.session_thread_id: no such thread")
            return {"type": "user.interrupt"}
        case "user.tool_result" | "user.custom_tool_result" as kind:
            key = RESULT_TYPES[kind]
            call_id = _known_call(entry, key, where, session, custom=kind == "user.custom_tool_result")
            if session is not None and call_id in session.calls and not session.calls[call_id].confirmed:
                raise invalid(f"{where}: tool call {call_id} waits for a user.tool_confirmation")
            content = _content(entry, kind, where, required=False)
            return {"type": kind, key: call_id, "is_error": bool(entry.get("is_error")), "content": content}
        case "user.tool_confirmation":
            return _confirmation(entry, where, session)
        case other:
            raise invalid(f"{where}.type: {other!r} is not an event that a client may send")


def _confirmation(entry: Mapping[str, Any], where: str, session: OfflineSession | None) -> dict[str, Any]:
    call_id = _known_call(entry, "tool_use_id", where, session, custom=False)
    if entry.get("result") not in ("allow", "deny"):
        raise invalid(f"{where}.result: expected allow or deny")
    event = {"type": "user.tool_confirmation", "tool_use_id": call_id, "result": entry["result"]}
    if entry.get("deny_message") is not None:
        if entry["result"] != "deny":
            raise invalid(f"{where}.deny_message: only with result deny")
        event["deny_message"] = entry["deny_message"]
    return event


def _known_call(entry: Mapping[str, Any], key: str, where: str, session: OfflineSession | None, *, custom: bool) -> str:
    call_id = entry.get(key)
    calls: dict[str, bool] = {}
    if session is not None:
        calls = {**session.closed_calls, **{call.id: call.custom for call in session.calls.values()}}
    if not isinstance(call_id, str) or calls.get(call_id) is not custom:
        raise invalid(f"{where}.{key}: no such tool call in this session")
    return call_id


def _content(entry: Mapping[str, Any], kind: str, where: str, *, required: bool) -> list[dict[str, Any]]:
    content = entry.get("content")
    if content is None and not required:
        return []
    if not isinstance(content, list) or (required and not content):
        raise invalid(f"{where}.content: expected a non-empty array of blocks")
    for block in content:
        if not isinstance(block, dict) or block.get("type") not in _BLOCKS[kind]:
            raise invalid(f"{where}.content: blocks may be {', '.join(_BLOCKS[kind])}")
        if block["type"] == "text" and not isinstance(block.get("text"), str):
            raise invalid(f"{where}.content: a text block needs text")
    return list(content)


def _check_place(kinds: list[Any], index: int, where: str) -> None:
    followed = ("user.message", *RESULT_TYPES)
    if index != len(kinds) - 1 or index == 0 or kinds[index - 1] not in followed:
        raise invalid(f"{where}: a system.message comes last, right after {', '.join(followed)}")


def text_of(content: list[dict[str, Any]]) -> str:
    """The text of a message or result; other blocks are named, not shown."""
    return "\n".join(b["text"] if b["type"] == "text" else f"[{b['type']}]" for b in content)
