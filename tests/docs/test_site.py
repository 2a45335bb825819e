"""The site: it is built without a warning, and a link that leads nowhere is one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("text", ["[gone](gone.md)", "[gone](#gone)", "```{nothing}\n```"])
def test_what_is_wrong_ends_the_build(tmp_path: Path, text: str) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", docs)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (docs / "index.md").write_text(f"# Title\n\n{text}\n", encoding="utf-8")
    assert build(docs, tmp_path / "site").returncode != 0
