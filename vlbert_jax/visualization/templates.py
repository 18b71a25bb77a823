"""HTML templates: files with {{name}} placeholders, filled with escaped values."""

from __future__ import annotations

import functools
import html
import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path


class Html(str):
    """A string that holds HTML; `Template.fill` inserts it without escaping."""

    def __add__(self, other: object) -> Html:
        return Html(super().__add__(escape(other)))


class Template(string.Template):
    """A template with {{name}} placeholders.

    `$` and single braces have no meaning, because CSS and JavaScript use them.
    """

    pattern = r"\{\{(?P<named>\w+)\}\}|(?P<escaped>(?!))|(?P<braced>(?!))|(?P<invalid>(?!))"  # pyright: ignore[reportAssignmentType]

    def fill(self, **values: object) -> Html:
        """Return the template with its placeholders replaced.

        Values other than `Html` are escaped.

        Raises KeyError if a value is missing.
        """
        return Html(self.substitute({name: escape(value) for name, value in values.items()}))


def escape(value: object) -> Html:
    """Return a value as HTML."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[object]) -> Html:
    """Return fragments of HTML as one; fragments other than `Html` are escaped."""
    return Html("".join(map(escape, parts)))


@functools.cache
def load_templates(file: str) -> Mapping[str, Template]:
    """Load a file of this folder, or at an absolute path, with templates, each after a comment with its name.

    Line breaks and indentation are for the reader of the file: they are removed.
    """
    _, *parts = re.split(r"<!-- (\w+) -->\n", (Path(__file__).parent / file).read_text("utf-8"))
    texts = (re.sub(r"\n\s*", "", text) for text in parts[1::2])
    return {name: Template(text) for name, text in zip(parts[::2], texts, strict=True)}
