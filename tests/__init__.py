"""Tests start hundreds of interpreters. Each would compile our modules anew where the environment forbids byte code."""

import os
import sys

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
