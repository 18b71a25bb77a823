"""Where the recordings of the official code are: in the repository, and in $VLBERT_GOLDEN if that is set."""

import os
import pathlib

from tests.helpers import GOLDEN


def golden_folders(kind: str) -> list[pathlib.Path]:
    """The folders `kind` (model, data, detector) that there are."""
    roots = [GOLDEN]
    if os.environ.get("VLBERT_GOLDEN"):
        roots.append(pathlib.Path(os.environ["VLBERT_GOLDEN"]))
    return [root / kind for root in roots if (root / kind).is_dir()]
