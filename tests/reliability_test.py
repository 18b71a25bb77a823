"""Every promise of docs/reliability.md names tests that exist."""

import re

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
