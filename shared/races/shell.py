"""Running one program in a sandbox of a race: as the agent's user, bounded in time and output, with nothing left over.

Output goes to files in the sandbox and only its last bytes come back. What a program leaves running is killed when it
ends (image/session/programs/sweep.sh): it could otherwise change the judge's files, or what the judge prints. Where the
sandbox's user is root it is found by the variable RACE_RUN in its environment alone, so a program that clears its
environment and detaches itself stays. Whatever the user, a program shares it with the shell that ends it: one that
kills that shell first leaves its branch without a score.
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

from image.session import programs
from image.session.claim import WORKER_PYTHON
from shared.deadline import Clock
from shared.ports import LARGEST_OUTPUT, Absent, CommandOutput, Doubtful, Refused, SandboxHost
from shared.races.fields import File

OUTPUT_BYTES: Final = 65_536  # of each of a program's two outputs
_BOTH_OUTPUTS: Final = 2 * OUTPUT_BYTES
_SHORT_SECONDS: Final = 20.0
_LONGEST_SCORE: Final = 4_096
_TEMPORARY: Final = "/tmp"

_READ_EXITS: Final = {
    2: "the file is not there",
    3: "the file is a link out of the working directory",
    4: "the file is too large",
}
_NOT_ALONE, _STILL_RUNNING = 8, 9  # how end_leftovers.sh ends


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
    """A program whose end is not known, or which never began."""

    reason: str


@dataclass(frozen=True, slots=True)
class TookEffect:
    """It has its effect."""


@dataclass(frozen=True, slots=True)
class NotDone:
    """It has no effect, or none that is known. `reason` is fit for a report."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotApart:
    """The user's processes cannot be told from others (the user is root, or the sandbox isolates nothing): none was
    ended."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """What stood at some paths is in this folder of the sandbox, for `put_back`."""

    folder: str


@dataclass(frozen=True, slots=True)
class JudgeFolders:
    """Where a judge's files are in its sandbox, and the folder that is its own."""

    files: str
    own: str

    @property
    def score_file(self) -> str:
        return f"{self.own}/score"

    def environ(self) -> dict[str, str]:
        """An empty home and configuration; no user site, and no current directory on any path of modules."""
        home = f"{self.own}/home"
        return {
            "SCORE_FILE": self.score_file,
            "JUDGE_FILES": self.files,
            "HOME": home,
            "XDG_CONFIG_HOME": f"{home}/.config",
            "XDG_CACHE_HOME": f"{home}/.cache",
            "XDG_DATA_HOME": f"{home}/.local/share",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            # Else a working directory that looks like a bare repository is one, with its configuration.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.bareRepository",
            "GIT_CONFIG_VALUE_0": "explicit",
            "PYTHONPATH": self.files,
            "PYTHONNOUSERSITE": "1",
            "PYTHONSAFEPATH": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NODE_PATH": self.files,
        }


@dataclass(frozen=True, slots=True)
class FileContents:
    """A file that was read."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Printed:
    """What a program of ours has written to its standard output."""

    text: str


@dataclass(frozen=True, slots=True)
class SandboxShell:
    """Runs programs in sandboxes as `user` in `workdir`.

    `run` and `clear` end whatever else this user runs in the sandbox, so they are for a race's own
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
            written = await self._put(sandbox_id, entrance, stdin.encode(errors="surrogatepass"))
            if isinstance(written, NotDone):
                return NotRun(f"its standard input could not be written: {written.reason}")
        most = str(OUTPUT_BYTES)
        began = self.clock()
        outcome = await self._sweeping(
            sandbox_id,
            "run_program.sh",
            (mark, _TEMPORARY, entrance, most, *argv),
            env=env,
            timeout=timeout,
            limit=_BOTH_OUTPUTS,
        )
        seconds = self.clock() - began
        match outcome:
            case CommandOutput(exit_code=code) if not outcome.timed_out and (code >= 0 or seconds < timeout):
                return Ran(code, outcome.stdout, outcome.stderr, timed_out=False, seconds=seconds)
            # an old daemon says signaled for timed out (docs/wire/tensorlake.md#73-run)
            case CommandOutput(exit_code=code):
                salvaged = await self._sweeping(
                    sandbox_id, "salvage_output.sh", (mark, _TEMPORARY, most), limit=_BOTH_OUTPUTS
                )
                kept = salvaged if isinstance(salvaged, CommandOutput) else outcome
                return Ran(code, kept.stdout, kept.stderr, timed_out=True, seconds=seconds)
            case _:
                return NotRun(why(outcome))

    async def clear(self, sandbox_id: str) -> TookEffect | NotApart | NotDone:
        """Ends what still runs as this user. TookEffect says that nothing does any more."""
        outcome: CommandOutput | Absent | Refused | Doubtful = Absent()
        for _ in range(2):  # it may be repeated
            outcome = await self._sweeping(sandbox_id, "end_leftovers.sh", ())
            if isinstance(outcome, CommandOutput):
                break
        match outcome:
            case CommandOutput(exit_code=0, timed_out=False):
                return TookEffect()
            case CommandOutput(exit_code=code, timed_out=False) if code == _NOT_ALONE:
                return NotApart()
            case CommandOutput():
                return NotDone("what the branch left running could not be ended")
            case _:
                return NotDone(f"it is not known whether what the branch left running was ended: {why(outcome)}")

    async def install(self, sandbox_id: str, files: Mapping[str, File]) -> TookEffect | NotDone:
        """Writes the files below `workdir`, as the user.

        They travel as one archive and are unpacked by the user: that gives them their owner, and lets no link in the
        workspace lead a write of the sandbox's own daemon (root) anywhere.
        """
        if not files:
            return TookEffect()
        path = f"{_TEMPORARY}/race-{secrets.token_hex(12)}.tar"
        written = await self._put(sandbox_id, path, _archive(files))
        if isinstance(written, NotDone):
            return NotDone(f"files could not be written: {written.reason}")
        match await self._sh(sandbox_id, 'exec tar -xf "$1"', (path,)):
            case CommandOutput(exit_code=0, timed_out=False):
                return TookEffect()
            case CommandOutput(stderr=text):
                return NotDone(f"files could not be written: {text[-200:].strip()}")
            case outcome:
                return NotDone(f"files could not be written: {why(outcome)}")

    async def last_line(self, sandbox_id: str, mark: str) -> str:
        """The last line with something in it that the run of this mark has written; empty where it is not known."""
        outcome = await self._sh(sandbox_id, programs.text("last_output.sh"), (mark, _TEMPORARY))
        lines = outcome.stdout.split("\n") if isinstance(outcome, CommandOutput) else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    async def read(self, sandbox_id: str, path: str, limit: int) -> FileContents | NotDone:
        """A file below `workdir` of at most `limit` bytes, read as the user."""
        outcome = await self._sh(sandbox_id, programs.text("read_file.sh"), (path, str(limit)), limit=as_base64(limit))
        if not isinstance(outcome, CommandOutput):
            return NotDone(f"the file could not be read: {why(outcome)}")
        if outcome.exit_code != 0 or outcome.timed_out:
            return NotDone(_READ_EXITS.get(outcome.exit_code, "the file could not be read"))
        try:
            return FileContents(base64.b64decode(outcome.stdout))
        except ValueError:
            return NotDone("the file could not be read")

    async def set_aside(self, sandbox_id: str, paths: Iterable[str]) -> SetAside | NotDone:
        """Moves what stands at these paths out of the working directory."""
        folder = f"{_TEMPORARY}/race-{new_mark()}-aside"
        match await self._sh(sandbox_id, programs.text("set_aside.sh"), (folder, *paths)):
            case CommandOutput(exit_code=0, timed_out=False):
                return SetAside(folder)
            case CommandOutput():
                return NotDone("what stands in the place of its files could not be moved")
            case outcome:
                return NotDone(why(outcome))

    async def put_back(self, sandbox_id: str, paths: Iterable[str], aside: SetAside) -> TookEffect | NotDone:
        """Undoes `set_aside` and what was written at the paths since."""
        match await self._sh(sandbox_id, programs.text("put_back.sh"), (aside.folder, *paths)):
            case CommandOutput(exit_code=0, timed_out=False):
                return TookEffect()
            case _:
                return NotDone("its files could not be taken out of the working directory again")

    async def prepare_judge(
        self, sandbox_id: str, files: Mapping[str, File], freed: Sequence[str] = ()
    ) -> JudgeFolders | NotDone:
        """Puts a judge's files outside the working directory, read-only and where possible root's, with links to them
        from where they are expected; the paths `freed` are only removed. Gives it an empty home."""
        folders = JudgeFolders(f"{_TEMPORARY}/race-{new_mark()}-judge", f"{_TEMPORARY}/race-{new_mark()}-own")
        if files:
            archive = f"{folders.files}.tar"
            written = await self._put(sandbox_id, archive, _archive(files))
            if isinstance(written, NotDone):
                return NotDone(f"its files could not be written: {written.reason}")
            unpacked: CommandOutput | Absent | Refused | Doubtful = Absent()
            for user in ("root", self.user):  # not every sandbox lets anybody be root
                text = programs.text("unpack_judge.sh")
                unpacked = await self._sh(sandbox_id, text, (folders.files, archive), user=user)
                if isinstance(unpacked, CommandOutput) and unpacked.exit_code == 0:
                    break
            else:
                return NotDone("its files could not be written")
        text, args = programs.text("prepare_judge.sh"), (folders.own, folders.files, *files, *freed)
        match await self._sh(sandbox_id, text, args):
            case CommandOutput(exit_code=0, timed_out=False):
                return folders
            case _:
                return NotDone("its place could not be prepared")

    async def score_file(self, sandbox_id: str, folders: JudgeFolders) -> str | None:
        """What a judge wrote to its score file; None where there is none."""
        outcome = await self.host.read_file(sandbox_id, folders.score_file, _LONGEST_SCORE)
        return outcome.decode(errors="replace") if isinstance(outcome, bytes) else None

    async def python(
        self, sandbox_id: str, program: str, args: Sequence[str], timeout: float, limit: int = LARGEST_OUTPUT
    ) -> Printed | NotRun:
        """Runs a program of ours in the sandbox's Python, with `workdir` as its working directory. What it prints has
        at most `limit` bytes."""
        text = programs.text("run_python.sh")
        outcome = await self._sh(sandbox_id, text, (WORKER_PYTHON, program, *args), timeout=timeout, limit=limit)
        match outcome:
            case CommandOutput(timed_out=True):
                return NotRun(f"did not end within {timeout:g} s")
            case CommandOutput(exit_code=0, stdout=said):
                return Printed(said)
            case CommandOutput(exit_code=127):
                return NotRun("there is no Python in the sandbox")
            case CommandOutput(exit_code=code):
                return NotRun(f"ended with {code}")
            case _:
                return NotRun(why(outcome))

    async def program(
        self, sandbox_id: str, text: str, args: Sequence[str], *, user: str, timeout: float, limit: int
    ) -> CommandOutput | Absent | Refused | Doubtful:
        """Runs a shell program of ours as this user. What it prints has at most `limit` bytes."""
        return await self._sh(sandbox_id, text, args, user=user, timeout=timeout, limit=max(limit, LARGEST_OUTPUT))

    async def stamp(self, sandbox_id: str, path: str, text: str) -> TookEffect | NotDone:
        """Overwrites a file of the sandbox's own."""
        return await self._put(sandbox_id, path, text.encode())

    async def _put(self, sandbox_id: str, path: str, data: bytes) -> TookEffect | NotDone:
        outcome: Absent | Refused | Doubtful | None = Absent()
        for _ in range(2):  # a write may be repeated
            outcome = await self.host.write_file(sandbox_id, path, data)
            if not isinstance(outcome, Doubtful):
                break
        return TookEffect() if outcome is None else NotDone(why(outcome))

    async def _sweeping(
        self,
        sandbox_id: str,
        program: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        timeout: float = _SHORT_SECONDS,
        limit: int = LARGEST_OUTPUT,
    ) -> CommandOutput | Absent | Refused | Doubtful:
        """A program that stands on sweep.sh."""
        text = programs.text("sweep.sh", program)
        return await self._sh(sandbox_id, text, (self.user, self.workdir, *args), env=env, timeout=timeout, limit=limit)

    async def _sh(
        self,
        sandbox_id: str,
        script: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        timeout: float = _SHORT_SECONDS,
        limit: int = LARGEST_OUTPUT,
        user: str | None = None,
    ) -> CommandOutput | Absent | Refused | Doubtful:
        return await self.host.run(
            sandbox_id,
            "sh",
            ["-c", script, "sh", *args],
            env=env or {},
            user=user or self.user,
            working_dir=self.workdir,
            timeout=timeout,
            limit=limit,
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


def as_base64(size: int) -> int:
    """How long the output is that carries so many bytes: four for three, and a line break now and then."""
    return size * 4 // 3 + size // 1024 + 64


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
