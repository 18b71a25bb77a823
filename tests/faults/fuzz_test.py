"""The short form of fuzz.py: every reader of foreign bytes refuses damaged files in one line."""

import pytest

from tests.faults.fuzz import fuzz
from tests.faults.readers import BY_NAME

INPUTS = 25  # of each reader


def test_damaged_files_are_refused_in_one_line(tmp_path):
    pytest.importorskip("torch")
    rows = fuzz(list(BY_NAME), INPUTS, 1, tmp_path)
    assert [row["reader"] for row in rows] == list(BY_NAME)
    faults = [fault for row in rows for fault in row["faults"]]
    assert not faults, faults
    assert sum(row["refused"] for row in rows) > sum(row["accepted"] for row in rows) > 0
