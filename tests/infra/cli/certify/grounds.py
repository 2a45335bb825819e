"""What checks of a test stand on."""

from __future__ import annotations

from pathlib import Path

from infra.cli.certify import runs
from infra.cli.certify.ground import Ground
from infra.cli.doctor.context import DoctorContext
from shared.settings import Settings


def ground_of(environ: dict[str, str], runs_folder: Path = runs.FOLDER) -> Ground:
    context = DoctorContext(environ, Settings.from_environ(environ), offline=True)
    return Ground(context, runs_folder=runs_folder)
