"""Code of the operator's own goes into what is deployed, and is imported there."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from image.server import definition
from infra.aws import package
from infra.gcp import source
from infra.operator_code import CarriedCode, carried, joined, on_the_path, read
from infra.sandbox.plan import server_lock
from shared.errors import SettingsError
from shared.settings import Settings
from tests.shared.test_settings import PLAIN
from tests.support.checkout import ROOT
from tests.support.lambda_runtime import SITE_PACKAGES

HASH = f"--hash=sha256:{'0' * 64}"
NAMED = {"RACE_JUDGES": "shortest=custom_judge:shortest", "SETUP_CREDENTIALS": "forge.app:credential"}


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    """A judge as a module, a credential in a package, what is none of it, and a requirement."""
    code = tmp_path / "code"
    (code / "forge").mkdir(parents=True)
    (code / "__pycache__").mkdir()
    (code / "custom_judge.py").write_bytes((ROOT / "examples" / "custom_judge.py").read_bytes())
    (code / "forge" / "app.py").write_text("def credential(repository): return None\n")
    (code / "forge" / "host.txt").write_text("forge.example")
    (code / "requirements.txt").write_text("not what is installed")
    (code / ".env").write_text("KEY=not-a-real-key")
    (code / "__pycache__" / "old.pyc").touch()
    (tmp_path / "own.txt").write_text(
        f"# compiled\nPyJWT==2.0.0 \\\n    {HASH}\n    # via x\nidna==9 ; python_version < '2' {HASH}\n"
    )
    return {**PLAIN, **NAMED, "OPERATOR_CODE": str(code), "OPERATOR_REQUIREMENTS": str(tmp_path / "own.txt")}


def bundled(own: CarriedCode, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For Lambda, but for the packages: they are this environment's."""
    monkeypatch.setattr(package, "install", lambda target, *_, **__: target.mkdir())
    built = package.build(folder, package.own_python(), "x86_64", extras=(), own=own)
    with zipfile.ZipFile(built.path) as archive:
        archive.extractall(folder / "task")
    return folder / "task"


@pytest.mark.parametrize("where", ["lambda", "cloud_run", "sandbox"])
def test_functions_of_the_operator_are_found_where_they_are_deployed(
    where: str, environ: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = carried(environ, Settings.from_environ(environ), where)
    assert own.files.keys() == {"custom_judge.py", "forge/app.py", "forge/host.txt", "requirements.txt"}
    folder = tmp_path / "there"
    folder.mkdir()
    if where == "lambda":
        folder = bundled(own, folder, monkeypatch)
    elif where == "cloud_run":
        source.stage(folder, own=CarriedCode(own.files))
        assert "anthropic==" in (folder / "requirements.txt").read_text(encoding="utf-8")
    else:
        definition.stage(definition.server_recipe(), folder, own.files)
        folder /= "bundle"
    program = (
        f"import sys; sys.path[:0] = [{str(folder)!r}]; sys.path.append({SITE_PACKAGES!r}); "
        "from shared.operator_code import function_of; from shared.races.plugins import load; "
        "function_of('forge.app:credential', ''); load('shortest', 'custom_judge:shortest'); "
        "print(sys.modules['custom_judge'].__file__)"
    )
    done = subprocess.run([sys.executable, "-S", "-I", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(folder / "custom_judge.py"), done.stderr


def test_what_it_needs_is_installed_with_what_we_need(environ: Mapping[str, str], tmp_path: Path) -> None:
    text = f"attrs==1;python_version > '2' {HASH}\nboto3==3 \\\n    {HASH}\n"
    own = CarriedCode({}, f"{text}anthropic=={_version('anthropic')} {HASH}\n")
    added = joined(source.requirements(), own.requirements).removeprefix(source.requirements())
    assert added == f"attrs==1;python_version > '2' {HASH}\nboto3==3 {HASH}\n"
    source.stage(tmp_path, own=own)
    assert (tmp_path / "requirements.txt").read_text(encoding="utf-8").endswith(added)
    assert server_lock(own).decode().endswith(added) and server_lock(own) != server_lock(CarriedCode())
    with pytest.raises(SettingsError, match=r"idna==9, but the functions run with idna==\S+: compile it with"):
        joined(source.requirements(), read(environ).requirements)


def test_here_too_its_modules_can_be_imported(environ: Mapping[str, str]) -> None:
    path = ["/first"]
    for _ in range(2):
        on_the_path(environ, path)
    on_the_path({"OPERATOR_CODE": f"{environ['OPERATOR_CODE']}/custom_judge.py"}, path)
    on_the_path({}, path)
    assert path == ["/first", environ["OPERATOR_CODE"]]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"OPERATOR_CODE": "", "OPERATOR_REQUIREMENTS": ""}, "your function is not among what is deployed to there"),
        (
            {"OPERATOR_REQUIREMENTS": "", "RACE_JUDGES": "a=other:judge"},
            r"RACE_JUDGES: your function .*\(other:judge\)",
        ),
        (
            {"OPERATOR_REQUIREMENTS": "", "RACE_JUDGES": "a=entry-point:b"},
            r"RACE_JUDGES: your function .*entry-point:b",
        ),
        ({"OPERATOR_CODE": "/none"}, "OPERATOR_CODE: there is no /none"),
        ({"OPERATOR_CODE": str(ROOT)}, "OPERATOR_CODE: functions is a name of this project's own code"),
        ({"OPERATOR_CODE": str(ROOT / "LICENSE")}, "LICENSE has no Python file"),
        ({"OPERATOR_REQUIREMENTS": "/none"}, "OPERATOR_REQUIREMENTS: /none cannot be read: No such file"),
        ({"OPERATOR_REQUIREMENTS": str(ROOT / "LICENSE")}, "requirement 1: each is name==version with --hash=sha256"),
    ],
)
def test_what_would_be_left_behind_or_break_is_refused(
    change: Mapping[str, str], why: str, environ: Mapping[str, str]
) -> None:
    changed = {**environ, **change}
    with pytest.raises(SettingsError, match=why):
        carried(changed, Settings.from_environ(changed), "there")


def _version(package: str) -> str:
    (line,) = [each for each in source.requirements().splitlines() if each.startswith(f"{package}==")]
    return line.split()[0].partition("==")[2]
