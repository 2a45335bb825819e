"""What metadata may ask for, and what is said where it may not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from image.session.setup import CALLER_KEYS, BadSetup, FileSource, SetupPolicy, Wishes, read_files

OPEN = SetupPolicy(callers=(*CALLER_KEYS, "env.*"), scripts={"test": "make test"})
HEX = "ab" * 32


def test_a_session_says_what_it_is_about() -> None:
    metadata = {
        "repo": "https://git.example/team/app.git",
        "ref": "feature/x",
        "subdir": "services/api/",
        "files": f"https://h.example/in.csv#sha256={HEX}&target=data/in.csv",
        "files.2": "s3://bucket/model.bin gs://other/deep/m.txt",
        "setup": "test",
        "env.REGION": "eu",
    }
    wishes = OPEN.wishes(metadata)
    assert (wishes.repo, wishes.ref, wishes.subdir) == (metadata["repo"], "feature/x", "services/api")
    assert wishes.folder == "app" == OPEN.wishes({"repo": "https://git.example/team/app/.git/"}).folder
    assert wishes.files == (
        FileSource("https://h.example/in.csv", "data/in.csv", HEX),
        FileSource("s3://bucket/model.bin", "model.bin"),
        FileSource("gs://other/deep/m.txt", "m.txt"),
    )
    assert (wishes.scripts, wishes.env) == (("make test",), {"REGION": "eu"})


def test_the_operators_part_comes_first_and_a_session_adds_to_it() -> None:
    base = Wishes(repo="https://git.example/app", ref="v1", scripts=("pip install -r r.txt",), env={"A": "1", "B": "1"})
    policy = replace(OPEN, base=base)
    assert policy.wishes({}) == base
    wishes = policy.wishes({"ref": "v2", "setup": "test", "env.B": "2"})
    assert (wishes.repo, wishes.ref) == (base.repo, "v2")
    assert wishes.scripts == ("pip install -r r.txt", "make test") and wishes.env == {"A": "1", "B": "2"}
    other = policy.wishes({"repo": "https://git.example/other"})
    assert (other.repo, other.ref) == ("https://git.example/other", "")
    assert SetupPolicy.from_wire(policy.to_wire()) == policy


def test_variables_alone_make_no_new_digest_and_all_else_does() -> None:
    wishes = Wishes(repo="https://git.example/app")
    assert replace(wishes, env={"A": "1"}).digest() == wishes.digest()
    assert replace(wishes, ref="v1").digest() != wishes.digest()


def test_metadata_for_other_purposes_is_left_alone_until_a_set_up_is_asked_for() -> None:
    assert OPEN.wishes({"customer": "42", "rev": "1"}) == Wishes()
    with pytest.raises(BadSetup, match=r"'rev' is no key of a set-up.*SETUP_OTHER_KEYS"):
        OPEN.wishes({"repo": "https://git.example/app", "rev": "1"})
    policy = replace(OPEN, foreign=("customer", "x-*"))
    assert policy.wishes({"repo": "https://git.example/app", "customer": "42", "x-a": ""}).repo


@pytest.mark.parametrize("key", ["repo", "files.1", "setup.inline", "env.A"])
def test_what_a_caller_may_not_set_is_an_error_that_names_the_setting(key: str) -> None:
    with pytest.raises(BadSetup, match=f"'{key}' may not be set by a caller.*SETUP_CALLER_KEYS"):
        SetupPolicy(callers=("ref", "env.B")).wishes({key: "https://git.example/app"})


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"repo": "http://git.example/app"}, "plain http only goes to this machine"),
        ({"repo": "ssh://git@git.example/app"}, "must be a URL with https://"),
        ({"repo": "git@git.example:app"}, "must be a URL with https://"),
        ({"repo": "https://me:pw@git.example/app"}, "no credential"),
        ({"repo": "https://git.example/.."}, "cannot be the name of a folder"),
        ({"repo": "https://git.example/skills"}, "cannot be the name of a folder"),
        ({"repo": "https://git.example/--upload-pack"}, "cannot be the name of a folder"),
        ({"repo": "https://git.example/a", "ref": "--help"}, "ref is no branch, tag or commit"),
        ({"repo": "https://git.example/a", "ref": "a..b"}, "ref is no branch, tag or commit"),
        ({"ref": "v1"}, "no repo that it could be of"),
        ({"repo": "https://git.example/a", "subdir": "../b"}, "subdir must be a path"),
        ({"files": "ftp://h.example/f"}, "must be a URL with https://, s3://, gs://"),
        ({"files": "https://h.example/f#sha256=ab"}, "64 hexadecimal digits"),
        ({"files": "https://h.example/f#md5=ab"}, "only sha256= and target="),
        ({"files": "https://h.example/f#target=../../etc/passwd"}, "target must be a path"),
        ({"files": "https://h.example/f#target=/etc/passwd"}, "target must be a path"),
        ({"files": "https://h.example/"}, "names no file"),
        ({"files": "https://h.example/f https://i.example/f"}, "two files have the target 'f'"),
        ({"setup": "tests"}, "names no script of the operator's: 'tests' .test."),
        ({"env.HANDS_STATE": "/tmp"}, "cannot be the name of a variable"),
        ({"env.A B": "1"}, "cannot be the name of a variable"),
    ],
)
def test_what_cannot_be_used_is_said(metadata: dict[str, str], said: str) -> None:
    with pytest.raises(BadSetup, match=said):
        OPEN.wishes(metadata)


def test_no_message_shows_a_signature() -> None:
    with pytest.raises(BadSetup) as caught:
        read_files("https://h.example/f?X-Amz-Signature=SECRET#sha256=1")
    assert "SECRET" not in str(caught.value)


def test_a_host_that_the_sandbox_may_not_reach_is_named_with_the_setting() -> None:
    policy = SetupPolicy(hosts=("api.example", "*.cdn.example"))
    policy.reaches("https://api.example/x")
    policy.reaches("https://a.cdn.example/x")
    policy.reaches("http://127.0.0.1:1/x")
    replace(policy, hosts=("10.0.0.0/8",)).reaches("https://git.example/x")
    replace(policy, hosts=None).reaches("https://git.example/x")
    with pytest.raises(BadSetup, match=r"may not reach 'git.example'.*SANDBOX_ALLOW_OUT"):
        policy.reaches("https://git.example/x")
