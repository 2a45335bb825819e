"""What the services may read and write in buckets for sessions: no more than the settings name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from shared.errors import SettingsError
from shared.settings import Settings

_PLAIN: Final = re.compile(r"[\w./~@+=-]*", re.ASCII)
"""What needs no quoting in a condition's expression, nor in gcloud's list of its parts."""


@dataclass(frozen=True, slots=True)
class BucketGrant:
    """A role in one bucket, and the condition that narrows it down to a prefix."""

    bucket: str
    role: str
    condition: str


@dataclass(frozen=True, slots=True)
class Grants:
    """`reads`: for whoever hands items over, who also signs addresses for these objects. `outputs`: for whoever
    collects."""

    reads: tuple[BucketGrant, ...] = ()
    outputs: tuple[BucketGrant, ...] = ()

    @property
    def library(self) -> bool:
        """Whether Cloud Storage's libraries are needed."""
        return bool(self.reads or self.outputs)


def grants(settings: Settings) -> Grants:
    """Raises SettingsError for what a Cloud Run service cannot reach."""
    prefixes = [prefix for each in settings.environments.values() for prefix in each.setup_stores]
    return Grants(_reads(prefixes), _outputs(settings))


def _reads(prefixes: Sequence[str]) -> tuple[BucketGrant, ...]:
    """The condition leaves the right to list out, which the role has too: a list is asked of the bucket."""
    found = []
    for prefix in dict.fromkeys(prefixes):
        parts = urlsplit(prefix)
        if parts.scheme != "gs":
            raise SettingsError("SETUP_STORES: a Cloud Run service has no credentials for s3://")
        below = _below(parts.netloc, parts.path.lstrip("/"), "SETUP_STORES")
        found.append(BucketGrant(parts.netloc, "roles/storage.objectViewer", below))
    return tuple(found)


def _outputs(settings: Settings) -> tuple[BucketGrant, ...]:
    """An object is overwritten by who may also delete it, and "not there" is answered to who may list alone."""
    if settings.outputs is None:
        return ()
    parts = urlsplit(settings.outputs.to)
    match parts.scheme:
        case "gs":
            prefix = f"{parts.path.strip('/')}/".lstrip("/")
            below = _below(parts.netloc, prefix, "OUTPUTS_TO")
            lists = 'resource.type == "storage.googleapis.com/Bucket"'
            return (BucketGrant(parts.netloc, "roles/storage.objectUser", f"{below} || {lists}"),)
        case "http" | "https":
            return ()
        case scheme:
            raise SettingsError(f"OUTPUTS_TO: a Cloud Run service cannot write to {scheme}:; use gs:// or https://")


def _below(bucket: str, prefix: str, setting: str) -> str:
    if not _PLAIN.fullmatch(f"{bucket}{prefix}"):
        raise SettingsError(f"{setting}: rights for it can be given only where it has letters, digits and ./~@+=_-")
    return f'resource.name.startsWith("projects/_/buckets/{bucket}/objects/{prefix}")'
