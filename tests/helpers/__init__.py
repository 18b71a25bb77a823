"""What several test files share: paths, time limits, small models and data, and checks."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]  # of the repository
GOLDEN = ROOT / "tests/golden"  # recordings of the official code
HANG_SECONDS = 600  # ends a subprocess that hangs; far above what any takes on a busy machine
