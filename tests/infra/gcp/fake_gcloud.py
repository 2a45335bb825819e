"""A `gcloud` for PATH that writes down its calls and remembers what they made."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROGRAM = """#!{python} -IS
import json, os, sys
argv = sys.argv[1:]
home = {home!r}
with open(home + "/state.json") as file:
    state = json.load(file)
given = sys.stdin.read()
call = {{"argv": argv, "stdin": given, "files": {{}}}}
for part in argv:
    name, _, value = part.partition("=")
    if name in ("--env-vars-file",):
        with open(value) as file:
            call["files"][name] = file.read()
    if name == "--source":
        call["files"][name] = [
            os.path.relpath(os.path.join(folder, each), value) for folder, _, names in os.walk(value) for each in names
        ]
        with open(value + "/requirements.txt") as file:
            call["files"]["requirements.txt"] = file.read()
with open(home + "/calls.jsonl", "a") as calls:
    calls.write(json.dumps(call) + "\\n")
def keep():
    with open(home + "/state.json", "w") as file:
        json.dump(state, file)
words = [part for part in argv if not part.startswith("--")]
broken = state["broken"].get(" ".join(words[:3]), 0)
if broken:
    state["broken"][" ".join(words[:3])] = broken - 1
    keep()
    sys.exit("ERROR: (gcloud) " + state["says"])
made = state["made"]
secret = next((part.partition("=")[2] for part in argv if part.startswith("--secret=")), "")
def absent():
    sys.exit("ERROR: (gcloud) NOT_FOUND: no such thing")
match words:
    case ["projects", "describe", _]:
        print("123456")
    case ["iam", "service-accounts", "create", name]:
        made.append("account " + name)
    case ["iam", "service-accounts", "describe", email]:
        "account " + email.partition("@")[0] in made or absent()
    case ["secrets", "create", name]:
        made.append("secret " + name)
    case ["secrets", "describe", name]:
        "secret " + name in made or absent()
    case ["secrets", "versions", "access", "latest"]:
        print(state["secrets"][secret], end="") if secret in state["secrets"] else absent()
    case ["secrets", "versions", "add", name]:
        state["secrets"][name] = given
    case ["run", "deploy", name]:
        made.append("service " + name)
    case ["run", "services", "describe", name]:
        "service " + name in made or sys.exit("ERROR: (gcloud) Cannot find service [" + name + "]")
    case ["run", "services", "delete", name]:
        made.remove("service " + name)
    case ["scheduler", "jobs", "create", "http", name]:
        made.append("job " + name)
    case ["scheduler", "jobs", "update", "http", name]:
        "job " + name in made or absent()
    case ["scheduler", "jobs", "describe", name]:
        "job " + name in made or absent()
    case ["scheduler", "jobs", "delete", name]:
        made.remove("job " + name)
    case ["tasks", "queues", "create", name]:
        made.append("queue " + name)
    case ["tasks", "queues", "describe" | "update", name]:
        "queue " + name in made or absent()
    case ["services", "enable", *_] | [*_, "add-iam-policy-binding", _]:
        pass
    case _:
        sys.exit("ERROR: unknown command " + " ".join(words))
keep()
"""


@dataclass
class FakeGcloud:
    """Put `folder` on PATH."""

    folder: Path

    @classmethod
    def install(cls, folder: Path) -> FakeGcloud:
        folder.mkdir()
        program = folder / "gcloud"
        program.write_text(_PROGRAM.format(python=sys.executable, home=str(folder)), encoding="utf-8")
        program.chmod(0o755)
        (folder / "state.json").write_text('{"made": [], "secrets": {}, "broken": {}, "says": ""}', encoding="utf-8")
        return cls(folder)

    def calls(self) -> list[dict[str, Any]]:
        """And forgets them."""
        file = self.folder / "calls.jsonl"
        if not file.exists():
            return []
        calls = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        file.unlink()
        return calls

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        return state

    def breaks(self, command: str, says: str, times: int = 1) -> None:
        """The first three words of a call that fails so often."""
        state = self.state() | {"broken": {command: times}, "says": says}
        (self.folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
