"""Outputs of a session are brought to where the operator keeps them, before its sandbox sleeps or ends.

Only new and changed files go: a manifest beside them says which versions have been collected, and when a whole look at
the folder was done. Any number of copies may collect at once: they write the same objects, and a manifest that loses
against another one costs a second copy of a file (docs/files.md#outputs).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from shared.output_settings import OutputSettings
from shared.outputs.stores import Store, StoreFailed, open_store
from shared.ports import SandboxHost
from shared.sandbox_files import FileEntry, FilesError, SandboxFiles, pieces
from shared.texts import printable

MANIFEST: Final = "manifest.json"
_NAMED: Final = 5  # files, in a report

log = logging.getLogger(__name__)


class NotCollected(Exception):
    """Not all of it is at the target. The text says why, and is fit for a report."""


@dataclass(frozen=True, slots=True)
class CollectedVersion:
    """A file as it was collected. `modified` is the sandbox's word, in seconds since 1970."""

    size: int
    sha256: str
    modified: float
    collected_at: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What has been collected of a session. `complete_at`: when the last look at the whole folder began."""

    session: str
    files: Mapping[str, CollectedVersion]
    complete_at: datetime | None = None

    def to_json(self) -> bytes:
        rows = [{"path": path, **asdict(version)} for path, version in sorted(self.files.items())]
        at = self.complete_at.isoformat() if self.complete_at is not None else None
        return json.dumps({"session": self.session, "complete_at": at, "files": rows}, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes | None, session: str) -> Manifest:
        """An empty one where there is none that can be read: then all is collected again."""
        if data is None:
            return cls(session, {})
        try:
            raw: Any = json.loads(data)
            files = {
                row["path"]: CollectedVersion(row["size"], row["sha256"], row["modified"], row["collected_at"])
                for row in raw["files"]
            }
            at = raw["complete_at"]
            return cls(session, files, datetime.fromisoformat(at) if at else None)
        except (ValueError, KeyError, TypeError):
            log.warning("outputs.manifest_unreadable session=%s", session)
            return cls(session, {})


@dataclass(frozen=True, slots=True)
class Collected:
    files: int
    bytes: int


class Collector:
    """Collects from sandboxes of one project. `now` is the time of day."""

    def __init__(
        self,
        settings: OutputSettings,
        host: SandboxHost,
        *,
        user: str | None,
        store: Store | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._host = host
        self._user = user
        self._store = store or open_store(settings.to, settings.signature)
        self._now = now

    async def current(self, session: str, since: datetime | None) -> bool:
        """Whether all that can have been made by `since` is collected, so that a sleeper need not be woken. False where
        that time is not known. Raises NotCollected where the target does not answer."""
        manifest = await self._manifest(session)
        return since is not None and manifest.complete_at is not None and manifest.complete_at >= since

    async def collect(self, session: str, sandbox_id: str, *, marked_at: datetime | None = None) -> Collected:
        """All that is new in a running sandbox. What was collected after `marked_at` is left as it is: it comes from
        the sandbox that took this one's place. Raises NotCollected."""
        try:
            async with asyncio.timeout(self._settings.seconds):
                return await self._collect(session, sandbox_id, marked_at)
        except TimeoutError:
            raise NotCollected(f"it took longer than {self._settings.seconds:g} s (OUTPUTS_SECONDS)") from None
        except FilesError as error:
            raise NotCollected(str(error)) from None

    async def _collect(self, session: str, sandbox_id: str, marked_at: datetime | None) -> Collected:
        began = self._now()
        files = SandboxFiles(self._host, sandbox_id, user=self._user)
        manifest, kind = await asyncio.gather(self._manifest(session), files.kind(self._settings.folder))
        if kind != "folder":
            await self._done(manifest, began)
            return Collected(0, 0)
        tree = await files.tree(self._settings.folder)
        left_out = [*tree.left_out] + ([] if tree.complete else [("the rest", "the folder has too many entries")])
        count = size = 0
        for file in tree.files:
            known = manifest.files.get(file.path)
            if known is not None and (known.sha256 == file.sha256 or _is_later(known, marked_at)):
                continue
            if file.size > self._settings.largest:
                left_out.append((file.path, f"larger than {self._settings.largest} bytes (OUTPUTS_FILE_MB)"))
                continue
            await self._bring(files, session, file)
            version = CollectedVersion(file.size, file.sha256, file.modified / 1e9, self._now().isoformat())
            manifest = replace(manifest, files={**manifest.files, file.path: version})
            count, size = count + 1, size + file.size
        if left_out:
            await self._write(session, MANIFEST, manifest.to_json())
            named = "; ".join(f"{printable(path, 100)}: {printable(why, 100)}" for path, why in left_out[:_NAMED])
            raise NotCollected(f"{len(left_out)} of its files were left out ({named})")
        await self._done(manifest, began)
        if count:
            log.info("outputs.collected session=%s files=%d bytes=%d", session, count, size)
        return Collected(count, size)

    async def _done(self, manifest: Manifest, began: datetime) -> None:
        await self._write(manifest.session, MANIFEST, replace(manifest, complete_at=began).to_json())

    async def _bring(self, files: SandboxFiles, session: str, file: FileEntry) -> None:
        """One file, by way of this machine's disk, and only if it is what was told."""
        with tempfile.TemporaryDirectory(prefix="hands-outputs-") as folder:
            spool = Path(folder) / "file"
            digest = hashlib.sha256()
            with spool.open("wb") as made:
                for call in pieces([(file, 0)]):
                    for data in await files.read(self._settings.folder, call):
                        digest.update(data)
                        made.write(data)
            if digest.hexdigest() != file.sha256:
                raise NotCollected(f"{printable(file.path, 100)} changed while it was collected")
            await self._store_call(lambda: self._store.write(f"{session}/files/{file.path}", spool))

    async def _write(self, session: str, name: str, data: bytes) -> None:
        with tempfile.NamedTemporaryFile(prefix="hands-outputs-") as spool:
            spool.write(data)
            spool.flush()
            await self._store_call(lambda: self._store.write(f"{session}/{name}", Path(spool.name)))

    async def _manifest(self, session: str) -> Manifest:
        return Manifest.from_json(await self._store_call(lambda: self._store.read(f"{session}/{MANIFEST}")), session)

    async def _store_call(self, call: Callable[[], Any]) -> Any:
        try:
            return await asyncio.to_thread(call)
        except StoreFailed as error:
            raise NotCollected(f"OUTPUTS_TO: {error}") from None


def _is_later(known: CollectedVersion, marked_at: datetime | None) -> bool:
    try:
        return marked_at is not None and datetime.fromisoformat(known.collected_at) > marked_at
    except ValueError:
        return False
