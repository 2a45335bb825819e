"""The site: it is built without a warning, and a link that leads nowhere is one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.checkout import ROOT


def build(docs: Path, site: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html", str(docs), str(site)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=100)


def test_every_page_is_in_the_site_and_nothing_is_wrong_with_it(tmp_path: Path) -> None:
    built = build(ROOT / "docs", tmp_path)
    assert (built.returncode, built.stderr) == (0, "")
    for page in (ROOT / "docs").rglob("*.md"):
        assert (tmp_path / page.relative_to(ROOT / "docs").with_suffix(".html")).exists(), page
    assert 'id="t7"' in (tmp_path / "wire" / "anthropic.html").read_text(encoding="utf-8")


def test_what_is_wrong_ends_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", docs)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    wrong = {"page": "[gone](gone.md)", "anchor": "[gone](#gone)", "directive": "```{nothing}\n```"}
    for name, text in wrong.items():
        (docs / f"{name}.md").write_text(f"# Title\n\n{text}\n", encoding="utf-8")
    (docs / "index.md").write_text(f"# Title\n\n```{{toctree}}\n{chr(10).join(wrong)}\n```\n", encoding="utf-8")
    built = build(docs, tmp_path / "site")
    assert built.returncode != 0
    found = {name for name in wrong if f"{docs / name}.md:" in built.stderr}
    assert found == set(wrong), built.stderr
    assert len(built.stderr.splitlines()) == len(wrong), built.stderr
