"""Sphinx's settings for the site: `make docs`. A warning is an error there, a link that leads nowhere included."""

from __future__ import annotations

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "Serverless hands"
author = _PROJECT["authors"][0]["name"]
copyright = author
version = release = _PROJECT["version"]

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
nitpicky = True
myst_heading_anchors = 4  # the anchors that the code cites, as GitHub makes them
myst_links_external_new_tab = False
highlight_language = "none"

html_theme = "furo"
html_title = f"{project} {version}"
html_show_sphinx = False
html_copy_source = False
