"""Paths, time limits, small models, small data and checks that several test files share."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]  # root of the repository
GOLDEN = ROOT / "tests/golden"  # recordings of the official code
HANG_SECONDS = 600  # limit for a subprocess that hangs; every healthy one is far faster
