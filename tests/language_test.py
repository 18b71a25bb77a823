"""Test that the text of the project has no excluded words and no British spellings."""

import re

import pytest

from tests.helpers import GOLDEN, ROOT

ROOTS = ("vlbert_jax", "data_prep", "configs", "launch", "tests", "docs")
ROOTS += ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
SUFFIXES = {".py", ".md", ".sh", ".bash", ".sbatch", ".html", ".css", ".js"}
DIALECT = re.compile(r"\b(officially|whole or not at all|of one's own|of yours|whoever|twins?|chief)\b", re.IGNORECASE)
BRITISH = re.compile(r"colour|centre|normalis|initialis|behaviour|licence|grey|recognis", re.IGNORECASE)
# These files list the words.
LISTING_THE_WORDS = ("tests/language_test.py", "tests/contributing_test.py", "CONTRIBUTING.md")
# These names cannot change.
FIXED_NAMES = (
    "newly_initialised",  # a key in config.json of existing weights
    "losses.normalise",  # a field in the configs of existing runs
    "normalise.json",  # a recording of the official code
    '"normalise"',  # the same field without its group
    '"grey"',  # an answer of annotators, which LXMERT spells in another way
)


def covered_files():
    """Return the files of all roots, named relative to the repository."""
    paths = {path for name in ROOTS for path in (ROOT / name, *(ROOT / name).rglob("*")) if path.is_file()}
    paths = {path for path in paths if path.suffix in SUFFIXES and not path.is_relative_to(GOLDEN)}
    return sorted({str(path.relative_to(ROOT)) for path in paths} - set(LISTING_THE_WORDS))


def words_in(text: str) -> list[tuple[int, str]]:
    """Return the line number and the text of each excluded word."""
    for name in FIXED_NAMES:
        text = text.replace(name, "")
    lines = enumerate(text.splitlines(), 1)
    return [(n, found.group()) for n, line in lines for words in (DIALECT, BRITISH) for found in words.finditer(line)]


def test_excluded_words_are_found():
    text = "a Twin of the chief\nthe twinkling colours, newly_initialised and initialised\n"
    assert words_in(text) == [(1, "Twin"), (1, "chief"), (2, "colour"), (2, "initialis")]


@pytest.mark.parametrize("name", covered_files())
def test_a_file_has_no_excluded_words(name):
    assert not words_in((ROOT / name).read_text("utf-8"))
