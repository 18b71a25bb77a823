"""The mechanical part of the language rules: words that the text of the project does not use."""

import re

import pytest

from tests.helpers import GOLDEN, ROOT

# Files and folders that are held to the rules.
COVERED = (
    "tests/model",
    "tests/data",
    "tests/language_test.py",
)
SUFFIXES = {".py", ".md", ".sh", ".bash", ".sbatch", ".html", ".css", ".js", ".toml", ".cfg"}
DIALECT = re.compile(
    r"\b(officially|whole or not at all|of one's own|of yours|whoever|twins?|chief)\b", re.IGNORECASE
)
BRITISH = re.compile(r"colour|centre|normalis|initialis|behaviour|licence|grey|recognis", re.IGNORECASE)
# Names that other programs fixed -> where they occur and who fixed them.
EXCEPTIONS = {
    "newly_initialised": "a key of the metadata in weight files that earlier versions wrote",
}


def covered_files():
    found = set()
    for name in COVERED:
        path = ROOT / name
        assert path.exists(), name
        found |= {path} if path.is_file() else set(path.rglob("*"))
    return sorted(path for path in found if path.suffix in SUFFIXES and not path.is_relative_to(GOLDEN))


def words_in(text, pattern):
    """Return the line and text of each match outside the exceptions."""
    lines = text.splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        for name in EXCEPTIONS:
            line = line.replace(name, "")
        found += [(number, match.group()) for match in pattern.finditer(line)]
    return found


@pytest.mark.parametrize("path", covered_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_words(path):
    if path.name == "language_test.py":
        return
    text = path.read_text("utf-8")
    assert not words_in(text, DIALECT)
    assert not words_in(text, BRITISH)
