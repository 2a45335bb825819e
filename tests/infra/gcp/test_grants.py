"""What a deployment grants for gs://: what the settings name, to whoever uses it, and no more."""

from __future__ import annotations

from typing import Final

import pytest

from infra.cli.deploy import gcp as command
from infra.gcp import plan
from shared.errors import SettingsError
from tests.infra.gcp.fake_gcloud import FakeGcloud
from tests.infra.gcp.test_deploy import ENVIRON, deployed, flags, gcloud

__all__ = ["gcloud"]

ASKED: Final = {"SETUP_STORES": "gs://inputs/data/ gs://more/", "OUTPUTS_TO": "gs://results/agents"}
SIGNER: Final = ["iam", "service-accounts", "add-iam-policy-binding"]
BELOW: Final = 'resource.name.startsWith("projects/_/buckets/{}/objects/{}")'


def test_objects_are_read_by_whoever_hands_over_and_outputs_written_by_the_tick(gcloud: FakeGcloud) -> None:
    command.deploy({**ENVIRON, **ASKED}, dry_run=False)
    calls = gcloud.calls()
    bound = [call["argv"] for call in calls if call["argv"][:3] == ["storage", "buckets", "add-iam-policy-binding"]]
    granted = {
        (argv[3], flags(argv)["--member"].partition(":")[2].partition("@")[0]): (
            flags(argv)["--role"],
            flags(argv)["--condition"].removeprefix("expression=").removesuffix(",title=hands"),
        )
        for argv in bound
    }
    reads = "roles/storage.objectViewer"
    lists = 'resource.type == "storage.googleapis.com/Bucket"'
    assert granted == {
        ("gs://inputs", "hands-webhook"): (reads, BELOW.format("inputs", "data/")),
        ("gs://inputs", "hands-tick"): (reads, BELOW.format("inputs", "data/")),
        ("gs://more", "hands-webhook"): (reads, BELOW.format("more", "")),
        ("gs://more", "hands-tick"): (reads, BELOW.format("more", "")),
        ("gs://results", "hands-tick"): (
            "roles/storage.objectUser",
            f"{BELOW.format('results', 'agents/')} || {lists}",
        ),
    }
    assert len(bound) == len(granted)
    signers = [call["argv"] for call in calls if call["argv"][:3] == SIGNER]
    assert {argv[3].partition("@")[0] for argv in signers} == {"hands-webhook", "hands-tick"}
    for argv in signers:
        assert flags(argv)["--member"] == f"serviceAccount:{argv[3]}", "nobody signs in another one's name"
        assert flags(argv)["--role"] == "roles/iam.serviceAccountTokenCreator"
    (enabled,) = [call["argv"] for call in calls if call["argv"][:2] == ["services", "enable"]]
    assert "iamcredentials.googleapis.com" in enabled
    for call in deployed(calls).values():
        for package in ("google-cloud-storage", "gcsfs"):
            assert f"\n{package}==" in call["files"]["requirements.txt"]


@pytest.mark.parametrize(
    ("asked", "granted", "installed"),
    [
        ({"OUTPUTS_TO": "https://account.blob.example/box"}, [], False),
        ({"OUTPUTS_TO": "gs://results"}, ["gs://results"], True),
    ],
)
def test_only_who_signs_may_sign_and_only_gs_asks_for_rights_and_the_library(
    asked: dict[str, str], granted: list[str], installed: bool
) -> None:
    made = plan.make({**ENVIRON, **asked}, "1")
    calls = [step.absent for step in made.before() if isinstance(step, plan.DeployStep)]
    assert [argv[4] for argv in calls if argv[1] == "storage"] == granted
    assert not [argv for argv in calls if "iamcredentials" in str(argv) or "TokenCreator" in str(argv)]
    assert (made.extras == ("gcp",)) == installed


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ({"OUTPUTS_TO": "file:///outputs"}, "OUTPUTS_TO: a Cloud Run service cannot write to file:"),
        ({"OUTPUTS_TO": "s3://results"}, "OUTPUTS_TO: a Cloud Run service cannot write to s3:"),
        ({"OUTPUTS_TO": 'gs://results/a"b'}, "OUTPUTS_TO: rights for it can be given only where"),
        ({"SETUP_CREDENTIALS": "forge:credential"}, "SETUP_CREDENTIALS: your function is not among what is deployed"),
        ({"RACE_JUDGES": "a=forge:judge"}, "RACE_JUDGES: your function is not among what is deployed"),
        ({"SETUP_STORES": "s3://inputs/data/"}, "SETUP_STORES: a Cloud Run service has no credentials for s3://"),
    ],
)
def test_what_a_service_cannot_reach_is_said_before_anything_is_made(extra: dict[str, str], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        plan.make({**ENVIRON, **extra})
