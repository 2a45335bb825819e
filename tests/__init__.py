"""Tests start hundreds of interpreters. Each would compile our modules anew where the environment forbids byte code.
And each has what FOREIGN_PATH gives, before anything of it is imported."""

import os
import sys

from tests.support.foreign_path import put_first

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
put_first(os.environ, sys.path)
