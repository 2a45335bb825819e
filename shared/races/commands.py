"""Running one program in a sandbox of a race: as the agent's user, bounded in time and output, with nothing left over.

Output goes to files in the sandbox and only its last bytes come back, so that no candidate can fill this process's
memory. What a program leaves running is killed when it ends: it could otherwise change the judge's files after they
were written. It is found by the variable RACE_RUN in its environment, so a program that clears its environment and
detaches itself is not found; only a sandbox of its own for the judge would be proof against that.
"""

from __future__ import annotations

import io
import secrets
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shared.deadline import Clock
from shared.ports import Absent, CommandOutput, Doubtful, Refused, SandboxHost
from shared.races.fields import File

OUTPUT_BYTES: Final = 65_536
_SHORT_SECONDS: Final = 20.0
_TEMPORARY: Final = "/tmp"

# $1 marks this run, $2 is where the outputs go, $3 its standard input; the program and its arguments follow. The marker
# is in the program's environment alone, so that neither this shell nor what the service wraps around it is taken for
# something left over.
_RUN: Final = f"""
mark=$1 out=$2/race-$1 input=$3; shift 3
mkdir -m 700 "$out" || exit 126
env RACE_RUN="$mark" "$@" <"$input" >"$out/out" 2>"$out/err"
status=$?
for again in 1 2 3; do
  found=
  for file in $(grep -lsF "RACE_RUN=$mark" /proc/[0-9]*/environ 2>/dev/null); do
    process=${{file#/proc/}}
    kill -KILL "${{process%/environ}}" 2>/dev/null && found=1
  done
  [ -n "$found" ] || break
done
tail -c {OUTPUT_BYTES} "$out/out"
tail -c {OUTPUT_BYTES} "$out/err" >&2
rm -rf "$out"
exit $status
"""
# What a program wrote before it was killed for its time.
_SALVAGE: Final = f"""
out=$2/race-$1
tail -c {OUTPUT_BYTES} "$out/out"
tail -c {OUTPUT_BYTES} "$out/err" >&2
rm -rf "$out"
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that ended, or was killed for its time. The outputs hold at most OUTPUT_BYTES each. `exit_code` is
    128 plus the signal's number after a signal (a shell's view), and negative where the sandbox killed all of it."""

    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class NotRun:
    """A program of which nobody knows how it ended, or which never began."""

    reason: str


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs programs in sandboxes as `user` in `workdir`."""

    host: SandboxHost
    user: str
    workdir: str
    clock: Clock = time.monotonic

    async def run(
        self, sandbox_id: str, argv: Sequence[str], *, env: Mapping[str, str], timeout: float, stdin: str | None = None
    ) -> Ran | NotRun:
        """Runs `argv` once; it is never run again, whatever the answer, since it may have begun."""
        mark = secrets.token_hex(12)
        entrance = "/dev/null"
        if stdin is not None:
            entrance = f"{_TEMPORARY}/race-{mark}-input"
            lost = await self._put(sandbox_id, entrance, stdin.encode(errors="surrogatepass"))
            if lost is not None:
                return NotRun(f"its standard input could not be written: {lost}")
        began = self.clock()
        outcome = await self._sh(sandbox_id, _RUN, (mark, _TEMPORARY, entrance, *argv), env=env, timeout=timeout)
        seconds = self.clock() - began
        match outcome:
            case CommandOutput(exit_code=code) if not outcome.timed_out and (code >= 0 or seconds < timeout):
                return Ran(code, outcome.stdout, outcome.stderr, timed_out=False, seconds=seconds)
            case CommandOutput(exit_code=code):  # an old daemon says signaled for timed out (contract tensorlake 7.3)
                salvaged = await self._sh(sandbox_id, _SALVAGE, (mark, _TEMPORARY), env={}, timeout=_SHORT_SECONDS)
                kept = salvaged if isinstance(salvaged, CommandOutput) else outcome
                return Ran(code, kept.stdout, kept.stderr, timed_out=True, seconds=seconds)
            case _:
                return NotRun(_why(outcome))

    async def install(self, sandbox_id: str, files: Mapping[str, File]) -> str | None:
        """Writes the files below `workdir`, as the user; returns why not, or None.

        They travel as one archive and are unpacked by the user: that gives them their owner, and lets no link in the
        workspace lead a write of the sandbox's own daemon (root) anywhere.
        """
        if not files:
            return None
        path = f"{_TEMPORARY}/race-{secrets.token_hex(12)}.tar"
        lost = await self._put(sandbox_id, path, _archive(files))
        if lost is not None:
            return f"files could not be written: {lost}"
        unpacked = await self._sh(sandbox_id, 'exec tar -xf "$1"', (path,), env={}, timeout=_SHORT_SECONDS)
        match unpacked:
            case CommandOutput(exit_code=0):
                return None
            case CommandOutput(stderr=text):
                return f"files could not be written: {text[-200:].strip()}"
            case _:
                return f"files could not be written: {_why(unpacked)}"

    async def stamp(self, sandbox_id: str, path: str, text: str) -> str | None:
        """Overwrites a file of the sandbox's own; returns why not, or None."""
        return await self._put(sandbox_id, path, text.encode())

    async def _put(self, sandbox_id: str, path: str, data: bytes) -> str | None:
        outcome: Absent | Refused | Doubtful | None = Absent()
        for _ in range(2):  # a write may be repeated
            outcome = await self.host.write_file(sandbox_id, path, data)
            if not isinstance(outcome, Doubtful):
                break
        return None if outcome is None else _why(outcome)

    async def _sh(
        self, sandbox_id: str, script: str, args: Sequence[str], *, env: Mapping[str, str], timeout: float
    ) -> CommandOutput | Absent | Refused | Doubtful:
        return await self.host.run(
            sandbox_id,
            "sh",
            ["-c", script, "sh", *args],
            env=env,
            user=self.user,
            working_dir=self.workdir,
            timeout=timeout,
        )


def _why(outcome: Absent | Refused | Doubtful) -> str:
    match outcome:
        case Absent():
            return "the sandbox is not there any more"
        case Refused(reason=reason):
            return f"refused: {reason}"
        case Doubtful(reason=reason):
            return f"no clear answer: {reason}"


def _archive(files: Mapping[str, File]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, file in files.items():
            data = file.data()
            member = tarfile.TarInfo(path)
            member.size = len(data)
            member.mode = 0o755 if file.executable else 0o644
            member.mtime = int(time.time())
            archive.addfile(member, io.BytesIO(data))
    return held.getvalue()
