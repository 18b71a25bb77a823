"""Provide paths, time limits, small models, small data and checks for several test files."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]  # root of the repository
GOLDEN = ROOT / "tests/golden"  # recordings of the official code
HANG_SECONDS = 600  # time limit for a subprocess that hangs; other subprocesses take far less
