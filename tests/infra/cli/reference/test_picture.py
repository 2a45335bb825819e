"""The picture of a terminal: whatever a program writes is in it, and it needs no network."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from infra.cli.reference.page_pictures import PICTURES
from infra.cli.reference.picture import PICTURE, draw, record

SAYS = "import sys; print('\\x1b[1mbold\\x1b[0m <b>&'); sys.exit(int(sys.argv[1]))"


def texts(svg: str) -> str:
    return "\n".join("".join(each.itertext()) for each in ElementTree.fromstring(svg).iter() if each.text)


def test_what_a_program_shows_is_drawn_and_escaped() -> None:
    svg = draw(record([sys.executable, "-c", SAYS, "0"]), "make something")
    assert "bold" in texts(svg) and "<b>&" in texts(svg).replace("\xa0", " ")
    assert "font-weight: bold" in svg


def test_a_program_that_fails_makes_no_picture() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        record([sys.executable, "-c", SAYS, "3"])


def test_the_picture_in_the_repository_shows_the_demo_and_loads_nothing() -> None:
    svg = PICTURE.read_text(encoding="utf-8")
    shown = texts(svg).replace("\xa0", " ")
    assert "make demo" in shown and "Everything" in shown and "has ended" in shown
    assert not re.search(r"""(?:href|url|src|@import)\s*[(=]?\s*["']?https?:""", svg)


@pytest.mark.parametrize(("path", "size"), PICTURES.items(), ids=lambda each: getattr(each, "name", ""))
def test_the_pictures_of_the_page_have_its_two_widths_and_are_small(path: Path, size: tuple[int, int]) -> None:
    png = path.read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", png[16:24]) == size
    assert len(png) < 150_000
