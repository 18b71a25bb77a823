"""Models that ship with the package: the demonstration models in `vlbert_jax/assets`.

Each is a folder with model.safetensors (float16, with the config in its metadata), the vocabularies of
its run and a model card. Its name can stand in place of any path of weights.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from vlbert_jax.files import is_address
from vlbert_jax.weights.checksums import damage_of
from vlbert_jax.weights.hub import PREFIX, download_folder

ASSETS = Path(__file__).resolve().parent.parent / "assets"
NOTICE = (
    "{name} is a small demonstration model of vlbert_jax, trained on synthetic scenes only; its answers about "
    "photographs are guesses."
)


def shipped_names() -> list[str]:
    """Return the names of the shipped models."""
    return sorted(path.parent.name for path in ASSETS.glob("*/model.safetensors"))


def locate_weights(given: str | Path) -> Path:
    """Return the path of weights that a user gives: that of a shipped model where only its name fits.

    Args:
        given: A path, the name of a shipped model, or hf:USER/NAME or an address (gs://, s3://), which is downloaded.
            What lies at the path comes first.

    Raises:
        FileNotFoundError: The Hugging Face hub has no such model, or it cannot be reached; nothing is at the address.
        StorageError, ValueError: The address cannot be read or used.
    """
    if is_address(given):
        from vlbert_jax.storage.inputs import local_copy  # folders need nothing of it

        return local_copy(str(given), damage_of)
    path = Path(given)
    if str(given).startswith(PREFIX) and not path.exists():
        return download_folder(str(given).removeprefix(PREFIX))
    return ASSETS / path if not path.exists() and str(given) in shipped_names() else path


def nearest_shipped(given: str) -> str:
    """Return the name of a shipped model of which `given` is a probable misspelling, "" if there is none."""
    return next(iter(difflib.get_close_matches(given, shipped_names(), n=1, cutoff=0.7)), "")


def notice_of(given: str | Path) -> str:
    """Return the sentence that a command prints about a shipped model, "" for other weights."""
    folder = locate_weights(given).resolve()
    return NOTICE.format(name=folder.name) if folder.parent == ASSETS else ""
