"""Every promise of docs/reliability.md names tests that exist, and no row of the campaign of kills differs."""

import json
import re
import runpy
import sys

import pytest

from tests.helpers import ROOT

TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_promise_has_a_test():
    rows = [line for line in (ROOT / "docs/reliability.md").read_text().splitlines() if line.startswith("|")]
    rows = [row for row in rows if row not in ("| promise | test |", "|---|---|")]
    assert len(rows) > 20
    for row in rows:
        promise, tests = row.strip("| ").split(" | ")
        named = TEST.findall(tests)
        assert named and ", ".join(f"`{path}::{name}`" for path, name in named) == tests, promise
        for path, name in named:
            assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"


def test_no_row_of_the_campaign_differs(monkeypatch, capsys):
    """Rows that are there are not made again."""
    rows = [json.loads(line) for line in (ROOT / "tests/faults/results.jsonl").read_text().splitlines()]
    assert sorted(row["seed"] for row in rows) == list(range(len(rows)))
    assert not [row for row in rows if row["rows"] or row["arrays"]]
    monkeypatch.setattr(sys, "argv", ["kills", f"--rows={len(rows)}"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("tests.faults.kills", run_name="__main__")
    assert ended.value.code == 0 and f"all {len(rows)} rows are there" in capsys.readouterr().out
