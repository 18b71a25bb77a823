"""Every promise of docs/reliability.md names tests that exist, and no row of the campaign of kills differs."""

import json
import re
import runpy
import sys

import pytest

from tests.faults import full_disk, kills, soak, two_processes
from tests.faults.fuzz import KINDS
from tests.faults.readers import BY_NAME
from tests.helpers import ROOT

PAGE = ROOT / "docs/reliability.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_promise_has_a_test():
    tables = re.findall(r"^\| promise \| test \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 20
    for row in rows:
        promise, tests = row.strip("| ").split(" | ")
        named = TEST.findall(tests)
        assert named and ", ".join(f"`{path}::{name}`" for path, name in named) == tests, promise
        for path, name in named:
            assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"


def stored(name):
    return [json.loads(line) for line in (ROOT / f"tests/faults/{name}.jsonl").read_text().splitlines()]


def test_the_figures_of_the_page_are_those_of_the_rows():
    rows, page = stored("fuzz"), " ".join(PAGE.read_text().split())
    assert not [row for row in rows if any(row[kind] for kind in KINDS)]
    inputs, readers = sum(row["inputs"] for row in rows), {row["reader"] for row in rows}
    assert inputs >= 100_000 and readers == set(BY_NAME)
    assert f"{inputs:,} inputs of {len(readers)} readers" in page
    assert f"at most {max(row['peak_mb'] for row in rows)} MB" in page

    rows = stored("full_disk")
    full = sum(row["status"] == 2 for row in rows)
    assert all(map(full_disk.is_expected, rows)) and f"in {full} of {len(rows)} the disk was full" in page

    rows = stored("results")
    assert all(map(kills.is_expected, rows))
    assert f"The {len(rows)} rows of one process have {sum(len(row['kills']) for row in rows)} kills" in page

    rows = stored("two_processes")
    events = [event for row in rows for event in row["events"] if event["hit"]]  # not those after the end of the run
    stalls = sum(event["stall_s"] > 0 for event in events)
    assert all(map(two_processes.is_expected, rows))
    assert f"The {len(rows)} rows of two processes have {len(events) - stalls} kills and {stalls} stalls" in page

    (row,) = stored("soak")
    assert row["growth_mb"] <= soak.GROWTH and f"it grew by at most {row['growth_mb']} MB" in page
    least, most = (f"{edge(row['memory_mb']):.0f}" for edge in (min, max))
    assert f"In {row['minutes']:.0f} minutes and {row['turns']:,} turns" in page and f"{least} to {most} MB" in page


def test_no_row_of_the_campaign_differs(monkeypatch, capsys):
    """Rows that are there are not made again."""
    rows = stored("results")
    assert sorted(row["seed"] for row in rows) == list(range(len(rows)))
    assert not [row for row in rows if row["rows"] or row["arrays"]]
    monkeypatch.setattr(sys, "argv", ["kills", f"--rows={len(rows)}"])
    monkeypatch.delitem(sys.modules, "tests.faults.kills", raising=False)  # runpy warns of a module that is imported
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("tests.faults.kills", run_name="__main__")
    assert ended.value.code == 0 and f"all {len(rows)} rows are there" in capsys.readouterr().out
