"""Running one program in a sandbox of a race: as the agent's user, bounded in time and output, with nothing left over.

Output goes to files in the sandbox and only its last bytes come back, so that no candidate can fill this process's
memory. What a program leaves running is killed when it ends (sweep.py): it could otherwise change the judge's files, or
what the judge prints. Where the sandbox's user is root it is found by the variable RACE_RUN in its environment alone,
so a program that clears its environment and detaches itself stays. And whatever the user, a program shares it with the
shell that ends it: one that kills that shell first leaves its branch without a score, and only a sandbox of its own
for the judge would be proof against one that takes it over with a debugger in its first milliseconds.
"""

from __future__ import annotations

import base64
import io
import secrets
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from image.session.claim import WORKER_PYTHON
from shared.deadline import Clock
from shared.ports import Absent, CommandOutput, Doubtful, Refused, SandboxHost
from shared.races import sweep
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
if alone; then sweep; else
  for again in 1 2 3; do
    found=
    for file in $(grep -lsF "RACE_RUN=$mark" /proc/[0-9]*/environ 2>/dev/null); do
      process=${{file#/proc/}}
      kill -KILL "${{process%/environ}}" 2>/dev/null && found=1
    done
    [ -n "$found" ] || break
  done
fi
tail -c {OUTPUT_BYTES} "$out/out"
tail -c {OUTPUT_BYTES} "$out/err" >&2
rm -rf "$out"
exit $status
"""
# What a program wrote before it was killed for its time.
_SALVAGE: Final = f"""
out=$2/race-$1
if alone; then sweep; fi
tail -c {OUTPUT_BYTES} "$out/out"
tail -c {OUTPUT_BYTES} "$out/err" >&2
rm -rf "$out"
"""


# $1 is a path below the working directory, $2 the most bytes. Not `base64 -w`, which not every base64 knows; a line
# break now and then, because nobody promises how long a line of output may be.
_READ: Final = """
path=$(readlink -f "./$1") && [ -f "$path" ] || exit 2
here=$(pwd -P)
case $path in "${here%/}"/*) ;; *) exit 3 ;; esac
[ "$(wc -c <"$path")" -le "$2" ] || exit 4
base64 <"$path" | tr -d '\\n' | fold -w 8192
"""
_READ_EXITS: Final = {
    2: "the file is not there",
    3: "the file is a link out of the working directory",
    4: "the file is too large",
}
# $1 is where to, paths follow. What stands where a judge's file will is moved, and the folders that will be made noted.
_SET_ASIDE: Final = """
aside=$1; shift
mkdir -m 700 "$aside" || exit 1
number=0
for path; do
  number=$((number + 1))
  if [ -e "./$path" ] || [ -L "./$path" ]; then mv "./$path" "$aside/$number" || exit 1; fi
  folder=$(dirname "./$path")
  while [ ! -e "$folder" ]; do echo "$folder" >>"$aside/made"; folder=$(dirname "$folder"); done
done
"""
_PUT_BACK: Final = """
aside=$1; shift
number=0
for path; do
  number=$((number + 1))
  rm -rf "./$path" || exit 1
  if [ -e "$aside/$number" ] || [ -L "$aside/$number" ]; then mv "$aside/$number" "./$path" || exit 1; fi
done
if [ -f "$aside/made" ]; then while IFS= read -r folder; do rmdir "$folder" 2>/dev/null; done <"$aside/made"; fi
rm -rf "$aside"
"""
# $1 is the mark of a run, $2 where its outputs are: the end of what it has written so far.
_LAST: Final = """tail -c 800 "$2/race-$1/out" 2>/dev/null"""
# $1 is the program's text: the image's own Python, which no candidate can replace, else any.
_PYTHON: Final = f"""
text=$1; shift
for python in {WORKER_PYTHON} python3 python; do
  command -v "$python" >/dev/null 2>&1 && exec "$python" -I -S -c "$text" "$@"
done
exit 127
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
class SandboxShell:
    """Runs programs in sandboxes as `user` in `workdir`.

    `run` and `clear` end whatever else this user runs in the sandbox (sweep.py), so they are for a race's own
    sandboxes, never for a source, and for one caller at a time in each.
    """

    host: SandboxHost
    user: str
    workdir: str
    clock: Clock = time.monotonic

    async def run(
        self,
        sandbox_id: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        timeout: float,
        stdin: str | None = None,
        mark: str | None = None,
    ) -> Ran | NotRun:
        """Runs `argv` once; it is never run again, whatever the answer, since it may have begun.

        `mark` (new_mark) lets `last_line` look on meanwhile.
        """
        mark = mark or new_mark()
        entrance = "/dev/null"
        if stdin is not None:
            entrance = f"{_TEMPORARY}/race-{mark}-input"
            lost = await self._put(sandbox_id, entrance, stdin.encode(errors="surrogatepass"))
            if lost is not None:
                return NotRun(f"its standard input could not be written: {lost}")
        began = self.clock()
        outcome = await self._sh(
            sandbox_id, self._sweeping(_RUN), (mark, _TEMPORARY, entrance, *argv), env=env, timeout=timeout
        )
        seconds = self.clock() - began
        match outcome:
            case CommandOutput(exit_code=code) if not outcome.timed_out and (code >= 0 or seconds < timeout):
                return Ran(code, outcome.stdout, outcome.stderr, timed_out=False, seconds=seconds)
            case CommandOutput(exit_code=code):  # an old daemon says signaled for timed out (contract tensorlake 7.3)
                salvage = self._sweeping(_SALVAGE)
                salvaged = await self._sh(sandbox_id, salvage, (mark, _TEMPORARY), env={}, timeout=_SHORT_SECONDS)
                kept = salvaged if isinstance(salvaged, CommandOutput) else outcome
                return Ran(code, kept.stdout, kept.stderr, timed_out=True, seconds=seconds)
            case _:
                return NotRun(why(outcome))

    async def clear(self, sandbox_id: str) -> str | None:
        """Ends what still runs as this user; returns why nobody knows that nothing does, or None. Does nothing where
        the user is root (see above)."""
        if self.user in ("root", "0"):
            return None
        outcome: CommandOutput | Absent | Refused | Doubtful = Absent()
        for _ in range(2):  # it may be repeated
            outcome = await self._sh(sandbox_id, self._sweeping(sweep.CLEAR), (), env={}, timeout=_SHORT_SECONDS)
            if isinstance(outcome, CommandOutput):
                break
        match outcome:
            case CommandOutput(exit_code=0, timed_out=False):
                return None
            case CommandOutput():
                return "what the branch left running could not be ended"
            case _:
                return f"nobody knows whether what the branch left running was ended: {why(outcome)}"

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
                return f"files could not be written: {why(unpacked)}"

    async def last_line(self, sandbox_id: str, mark: str) -> str:
        """The last line with something in it that the run of this mark has written; empty where nobody knows."""
        outcome = await self._sh(sandbox_id, _LAST, (mark, _TEMPORARY), env={}, timeout=_SHORT_SECONDS)
        lines = outcome.stdout.split("\n") if isinstance(outcome, CommandOutput) else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    async def read(self, sandbox_id: str, path: str, limit: int) -> bytes | str:
        """A file below `workdir` of at most `limit` bytes, read as the user; a text says why not."""
        outcome = await self._sh(sandbox_id, _READ, (path, str(limit)), env={}, timeout=_SHORT_SECONDS)
        if not isinstance(outcome, CommandOutput):
            return f"the file could not be read: {why(outcome)}"
        if outcome.exit_code != 0 or outcome.timed_out:
            return _READ_EXITS.get(outcome.exit_code, "the file could not be read")
        try:
            return base64.b64decode(outcome.stdout)
        except ValueError:
            return "the file could not be read"

    async def set_aside(self, sandbox_id: str, paths: Iterable[str]) -> str | NotRun:
        """Moves what stands at these paths out of the working directory; returns where to, for `put_back`."""
        aside = f"{_TEMPORARY}/race-{new_mark()}-aside"
        outcome = await self._sh(sandbox_id, _SET_ASIDE, (aside, *paths), env={}, timeout=_SHORT_SECONDS)
        match outcome:
            case CommandOutput(exit_code=0):
                return aside
            case CommandOutput():
                return NotRun("what stands in the place of its files could not be moved")
            case _:
                return NotRun(why(outcome))

    async def put_back(self, sandbox_id: str, paths: Iterable[str], aside: str) -> str | None:
        """Undoes `set_aside` and what was written at the paths since; returns why not, or None."""
        outcome = await self._sh(sandbox_id, _PUT_BACK, (aside, *paths), env={}, timeout=_SHORT_SECONDS)
        if outcome == CommandOutput(0, "", "", timed_out=False):
            return None
        return "its files could not be taken out of the working directory again"

    async def python(self, sandbox_id: str, program: str, args: Sequence[str], timeout: float) -> str | NotRun:
        """What a program of ours prints in the sandbox's Python, with `workdir` as its working directory."""
        outcome = await self._sh(sandbox_id, _PYTHON, (program, *args), env={}, timeout=timeout)
        match outcome:
            case CommandOutput(timed_out=True):
                return NotRun(f"did not end within {timeout:g} s")
            case CommandOutput(exit_code=0, stdout=text):
                return text
            case CommandOutput(exit_code=127):
                return NotRun("there is no Python in the sandbox")
            case CommandOutput(exit_code=code):
                return NotRun(f"ended with {code}")
            case _:
                return NotRun(why(outcome))

    async def stamp(self, sandbox_id: str, path: str, text: str) -> str | None:
        """Overwrites a file of the sandbox's own; returns why not, or None."""
        return await self._put(sandbox_id, path, text.encode())

    async def _put(self, sandbox_id: str, path: str, data: bytes) -> str | None:
        outcome: Absent | Refused | Doubtful | None = Absent()
        for _ in range(2):  # a write may be repeated
            outcome = await self.host.write_file(sandbox_id, path, data)
            if not isinstance(outcome, Doubtful):
                break
        return None if outcome is None else why(outcome)

    def _sweeping(self, script: str) -> str:
        return f"{sweep.functions(self.user, self.workdir)}{script}"

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


def new_mark() -> str:
    """What tells one run from all others."""
    return secrets.token_hex(12)


def why(outcome: Absent | Refused | Doubtful) -> str:
    """Why a call to a sandbox came to nothing, for a report."""
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
