"""Builds: admitted, given a context, sealed, carried out (docs/wire/tensorlake.md#10-images)."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import secrets
import tarfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.local.tensorlake import dockerfile, trees
from infra.local.tensorlake.dockerfile import DockerfileError
from infra.local.tensorlake.errors import TensorlakeApiError, bad_request, conflict, not_found, not_supported
from infra.local.tensorlake.images import Image, ImageStore
from infra.local.tensorlake.names import new_id


class BuildRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")

    kind: str = "dockerfile"
    name: str = Field(min_length=1)
    dockerfile_path: str = "Dockerfile"
    build_args: dict[str, str] = {}


class BuildStatus(enum.StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(eq=False)
class Build:
    id: str
    request: BuildRequest
    upload_token: str
    sandbox_id: str = field(default_factory=new_id)
    """Of the sandbox that the log is read in (builders.py)."""
    followed: bool = False
    """Whether somebody has read the log there."""
    first_look: float | None = None
    """When somebody first asked for the record of the finished build, on the monotonic clock."""
    status: BuildStatus = BuildStatus.PENDING
    error: str | None = None
    image: Image | None = None
    log: list[str] = field(default_factory=list)
    context: Path | None = None
    digest: str = ""
    created_at_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    @property
    def over(self) -> bool:
        return self.status in (BuildStatus.SUCCEEDED, BuildStatus.FAILED, BuildStatus.CANCELLED)

    def log_is_due(self, seconds: float) -> bool:
        """Whether it is still to read as running: a client looks for the log of a running build alone. From the first
        look on for so long, or until somebody has read the log."""
        if not seconds or self.followed or self.status is not BuildStatus.SUCCEEDED:
            return False
        now = time.monotonic()
        self.first_look = self.first_look or now
        return now < self.first_look + seconds

    def record(self, log_seconds: float = 0.0) -> dict[str, Any]:
        """`log_seconds`: as `log_is_due` takes them."""
        due = self.log_is_due(log_seconds)
        phase = "awaiting_context" if self.status is BuildStatus.PENDING else "executing"
        answer: dict[str, Any] = {
            "build_id": self.id,
            "kind": self.request.kind,
            "name": self.request.name,
            "status": BuildStatus.RUNNING if due else self.status,
            "phase": "finished" if self.over and not due else phase,
            "attempt_no": 1,
            "created_at_ms": self.created_at_ms,
            "updated_at_ms": time.time_ns() // 1_000_000,
        }
        if self.status is not BuildStatus.PENDING:
            answer["builder_sandbox_id"] = self.sandbox_id
        if self.error is not None:
            answer["error"] = self.error
        if self.image is not None and not due:
            answer["result"] = self.image.record()
        return answer


class Builds:
    def __init__(self, images: ImageStore, directory: Path) -> None:
        self._images = images
        self._directory = directory
        self._all: dict[str, Build] = {}
        self._by_key: dict[str, Build] = {}
        self._by_sandbox: dict[str, Build] = {}

    def admit(self, request: BuildRequest, idempotency_key: str | None) -> Build:
        """The same key gives the same build, so that a repeated request starts nothing twice."""
        if request.kind != "dockerfile":
            raise not_supported(f"image builds of kind '{request.kind}'", "build from a Dockerfile or an Image")
        if idempotency_key is not None and (known := self._by_key.get(idempotency_key)) is not None:
            return known
        build = Build(new_id(), request, secrets.token_urlsafe(16))
        self._all[build.id] = self._by_sandbox[build.sandbox_id] = build
        if idempotency_key is not None:
            self._by_key[idempotency_key] = build
        return build

    def find(self, build_id: str) -> Build:
        build = self._all.get(build_id)
        if build is None:
            raise not_found(f"build '{build_id}'")
        return build

    def in_sandbox(self, sandbox_id: str) -> Build | None:
        """The build whose log is read in that sandbox."""
        return self._by_sandbox.get(sandbox_id)

    async def receive(self, build_id: str, token: str, body: AsyncIterator[bytes]) -> None:
        """Keep the context tar. Its URL is the credential, as with a signed upload URL."""
        build = self._all.get(build_id)
        if build is None or not secrets.compare_digest(build.upload_token, token):
            raise not_found("upload")
        if build.status is not BuildStatus.PENDING:
            raise conflict(f"build is {build.status}")
        place = self._directory / build.id
        await asyncio.to_thread(place.mkdir, parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with await asyncio.to_thread((place / "context.tar").open, "wb") as file:
            async for chunk in body:
                digest.update(chunk)
                await asyncio.to_thread(file.write, chunk)
        build.context, build.digest = place / "context.tar", digest.hexdigest()

    async def seal(self, build: Build, digest: str) -> None:
        """Check the context and carry the build out. A build that fails is an answer, not an exception."""
        if build.status is not BuildStatus.PENDING:
            return
        if build.context is None:
            raise bad_request("the context has not been uploaded")
        if digest.removeprefix("sha256:") != build.digest:
            raise TensorlakeApiError(409, "DIGEST_MISMATCH", "the context uploaded has another digest")
        build.status = BuildStatus.RUNNING
        try:
            image = await asyncio.to_thread(self._carry_out, build, build.context)
        except (DockerfileError, trees.CopyError, OSError, tarfile.TarError, UnicodeDecodeError) as error:
            build.status, build.error = BuildStatus.FAILED, f"{error}"
            build.log.append(f"failed: {error}")
            return
        except Exception as error:  # a bug must not leave a build that runs indefinitely
            build.status, build.error = BuildStatus.FAILED, f"bug: {type(error).__name__}"
            raise
        finally:
            await asyncio.to_thread(trees.remove, build.context.parent)
        replaced = self._images.register(image)
        if replaced is not None:
            await self._images.discard(replaced)
        build.image, build.status = image, BuildStatus.SUCCEEDED

    def _carry_out(self, build: Build, tar: Path) -> Image:
        context = tar.parent / "context"
        with tarfile.open(tar) as archive:
            dockerfile.unpack(archive, context)
        where = trees.within(context, trees.resolve_in(context, build.request.dockerfile_path))
        if not where.is_file():
            raise DockerfileError(f"'{build.request.dockerfile_path}' is not in the build context")
        text = where.read_text()
        inherited = {image.name: image.base.runtime for image in self._images.all()}
        plan = dockerfile.read(text, build.request.build_args, inherited)
        parent = self._images.find(plan.parent)
        start = "the built-in default (the registry's image is not fetched)"
        build.log.append(f"FROM {plan.parent}: starts from {'that image' if parent else start}")
        build.log += [f"COPY {' '.join(copy.sources)} {copy.target}: applied" for copy in plan.copies]
        build.log += self._not_executed(plan.not_executed)
        build.log += plan.notes

        def fill(root: Path) -> None:
            if parent is not None:
                trees.copy_into(parent.base.system, root)
                for layer in parent.base.layers:
                    trees.copy_into(layer.directory, root)
            dockerfile.carry_out(plan, context, root)

        inherited_runs = parent.not_executed if parent is not None else ()
        return self._images.make(
            build.request.name.lower(),
            plan.runtime,
            fill,
            parent=plan.parent,
            not_executed=(*inherited_runs, *plan.not_executed),
            notes=plan.notes,
            dockerfile=text,
        )

    def _not_executed(self, steps: Sequence[str]) -> list[str]:
        """What the log says of RUN steps: each, or the root that sandboxes have in place of what they would make."""
        root = self._images.host.image_root
        if root and steps:
            return [f"{len(steps)} RUN steps are not executed: sandboxes have the programs of {root}"]
        return [f"not executed offline: RUN {step}" for step in steps]

    def cancel(self, build_id: str) -> str:
        """The outcome, in the service's words."""
        build = self._all.get(build_id)
        if build is None:
            return "not_admitted"
        match build.status:
            case BuildStatus.PENDING:
                build.status = BuildStatus.CANCELLED
                return "cancelled"
            case BuildStatus.CANCELLED:
                return "already_cancelled"
            case BuildStatus.FAILED:
                return "already_failed"
            case BuildStatus.SUCCEEDED:
                return "already_completed"
        return "unconfirmed"
