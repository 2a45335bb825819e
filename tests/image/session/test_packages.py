"""Packages of pip and npm on their way into the image: exact where the operator is, and no way into a RUN step."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from image.session.definition import BadRecipe, Recipe, dockerfile, recipe_from, stage
from image.session.packages import BadPackages, Packages, read_packages
from tests.support.http_stub import StubHandler, stub_server

HASHED = "idna==3.10 \\\n    --hash=sha256:" + "a" * 64 + "\n"


def test_lists_are_read_as_people_write_them() -> None:
    found = read_packages(
        "numpy==2.3.1, pandas>=2,<3 uvicorn[standard]~=0.30", "typescript@5.9.2,@scope/tool  left-pad"
    )
    assert found.pip == ("numpy==2.3.1", "pandas>=2,<3", "uvicorn[standard]~=0.30")
    assert found.npm == ("typescript@5.9.2", "@scope/tool", "left-pad")
    assert read_packages("", "") == read_packages(" ", "\n")


@pytest.mark.parametrize(
    "text",
    ["a;id", "a && id", "$(id)", "--index-url=x", "-r", "a|b", "../x", "git+https://user:pw@h/r", "a\nb'c", "`id`"],
)
def test_nothing_else_than_a_name_and_a_version_passes(text: str) -> None:
    for pip, npm, setting in ((text, "", "SANDBOX_PIP_PACKAGES"), ("", text, "SANDBOX_NPM_PACKAGES")):
        with pytest.raises(BadPackages, match=setting) as refused:
            read_packages(pip, npm)
        assert "pw" not in str(refused.value)


def test_a_requirements_file_keeps_its_hashes_and_leads_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "agent.txt"
    path.write_text(HASHED)
    recipe = recipe_from({"SANDBOX_PIP_PACKAGES": f"file:{path}"})
    text = dockerfile(recipe)
    assert "pip install --no-cache-dir --require-hashes --requirement /opt/python/requirements.txt" in text
    (tmp_path / "context").mkdir()
    stage(recipe, tmp_path / "context")
    assert (tmp_path / "context" / ".session-image" / "requirements.txt").read_text() == HASHED
    for line, why in (
        ("-r other.txt", "-r is not taken"),
        ("--extra-index-url https://h/simple", "--extra-index-url is not taken"),
        ("-e .", "-e is not taken"),
        ("./local", "a path of this machine"),
        ("x @ https://user:hunter2@h/x.whl", "a URL with a credential"),
    ):
        path.write_text(f"idna\n{line}\n")
        with pytest.raises(BadRecipe, match=why) as refused:
            recipe_from({"SANDBOX_PIP_PACKAGES": f"file:{path}"})
        assert "hunter2" not in str(refused.value)
    with pytest.raises(BadRecipe, match="cannot be read"):
        recipe_from({"SANDBOX_PIP_PACKAGES": f"file:{tmp_path}/none"})


def test_a_lock_of_npm_is_installed_as_it_is(tmp_path: Path) -> None:
    lock = tmp_path / "package-lock.json"
    lock.write_text(json.dumps({"lockfileVersion": 3}))
    with pytest.raises(BadRecipe, match=r"package\.json cannot be read"):
        recipe_from({"SANDBOX_NPM_PACKAGES": f"file:{lock}"})
    (tmp_path / "package.json").write_text("{}")
    text = dockerfile(recipe_from({"SANDBOX_NPM_PACKAGES": f"file:{lock}"}))
    assert "RUN npm ci --omit=dev --no-audit --no-fund --prefix /opt/npm" in text
    assert text.index("/usr/local/bin/npm") < text.index("npm ci") < text.index("USER agent")
    with pytest.raises(BadRecipe, match=r"is no package-lock\.json"):
        recipe_from({"SANDBOX_NPM_PACKAGES": f"file:{tmp_path}/package.json"})
    with pytest.raises(BadRecipe, match="the slim image has no npm"):
        recipe_from({"SANDBOX_NPM_PACKAGES": "left-pad", "SANDBOX_IMAGE_VARIANT": "slim"})
    assert "/opt/npm" not in dockerfile(Recipe("a")) and "/opt/python" not in dockerfile(Recipe("a"))


def test_the_step_of_pip_installs_what_was_asked_for(tmp_path: Path) -> None:
    """Run as it is written, with a wheel of this test and its folder in the image's place."""
    wheel = tmp_path / "handsprobe-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("handsprobe.py", "HERE = 1\n")
        about = {
            "METADATA": "Metadata-Version: 2.1\nName: handsprobe\nVersion: 1.0\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        for name, text in about.items():
            archive.writestr(f"handsprobe-1.0.dist-info/{name}", text)
    packages = read_packages("handsprobe==1.0", "")
    place = tmp_path / "opt"
    place.mkdir()
    packages.stage(place)
    (run,) = [step for step in packages.steps("context", sys.executable) if step.startswith("RUN ")]
    command = run.removeprefix("RUN ").replace("/opt/python", str(place))
    environ = {"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(["sh", "-ec", command], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = subprocess.run(
        [f"{place}/bin/python", "-c", "import handsprobe; print(handsprobe.HERE)"], capture_output=True
    )
    assert asked.stdout == b"1\n", asked.stderr


class _Registry(StubHandler):
    """One package with a program, as a registry of npm shows it."""

    tarball: bytes
    url: str

    def do_GET(self) -> None:
        if self.path == "/handsprobe.tgz":
            self.answer(200, self.tarball, {"content-type": "application/octet-stream"})
        elif self.path == "/@hands%2fprobe":
            name = {"name": "@hands/probe", "version": "1.0.0", "bin": {"handsprobe": "program.js"}}
            digest = base64.b64encode(hashlib.sha512(self.tarball).digest()).decode()
            dist = {"tarball": f"{self.url}/handsprobe.tgz", "integrity": f"sha512-{digest}"}
            about = {
                "name": name["name"],
                "dist-tags": {"latest": "1.0.0"},
                "versions": {"1.0.0": {**name, "dist": dist}},
            }
            self.answer(200, json.dumps(about).encode())
        else:
            self.answer(404, b"{}")


def _tarball() -> bytes:
    made = io.BytesIO()
    manifest = {"name": "@hands/probe", "version": "1.0.0", "main": "main.js", "bin": {"handsprobe": "program.js"}}
    files = {
        "package.json": json.dumps(manifest),
        "main.js": "exports.here = 1;",
        "program.js": "#!/usr/bin/env node\nconsole.log(require('@hands/probe').here);",
    }
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size, entry.mode = len(text), 0o755
            archive.addfile(entry, io.BytesIO(text.encode()))
    return made.getvalue()


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is in the image, and not on this machine")
def test_the_steps_of_npm_install_what_was_asked_for(tmp_path: Path) -> None:
    """Run as they are written, with a registry of this test: by name, then by the lock that came of it."""
    handler = type("Handler", (_Registry,), {"tarball": _tarball()})
    with stub_server(handler) as url:
        handler.url = url  # type: ignore[attr-defined]
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "npm_config_registry": url}

        def ran(packages: Packages, place: Path) -> str:
            packages.stage(place.parent)  # what COPY takes from the context
            for step in packages.steps("context", sys.executable):
                command = step.replace("/opt/npm", str(place))
                if step.startswith("COPY "):
                    place.mkdir()
                    for name in ("package.json", "package-lock.json"):
                        shutil.copy(place.parent / name, place)
                elif step.startswith("RUN "):
                    done = subprocess.run(
                        ["sh", "-ec", command.removeprefix("RUN ")], env=environ, capture_output=True, text=True
                    )
                    assert done.returncode == 0, done.stderr
                else:
                    path, node = command.removeprefix("ENV PATH=").split(" NODE_PATH=")
                    seen = {"PATH": path.replace("$PATH", environ["PATH"]), "NODE_PATH": node}
            return subprocess.run(["handsprobe"], env=seen, capture_output=True, text=True, check=True).stdout

        by_name, by_lock = tmp_path / "a" / "npm", tmp_path / "b" / "npm"
        by_name.parent.mkdir()
        by_lock.parent.mkdir()
        assert ran(read_packages("", "@hands/probe@1.0.0"), by_name) == "1\n"
        assert ran(read_packages("", f"file:{by_name}/package-lock.json"), by_lock) == "1\n"
