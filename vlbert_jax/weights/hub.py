"""Folders of weights on the Hugging Face hub: hf:USER/NAME stands for one in place of a path.

huggingface_hub finds the token (`hf auth login` stores it, or HF_TOKEN holds it); no message shows it.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path

PREFIX = "hf:"
NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# What is read of a repository. Its weights are one of these kinds, the first that it has.
TEXTS = ["README.md", "config.json", "checksums.json", "*.txt", "tokenizer*.json", "vocabularies/*"]
WEIGHTS = (["state/*", "kept/*", "model*.safetensors*"], ["pytorch_model*"])


@functools.cache
def download_folder(name: str) -> Path:
    """Return the local copy of a repository of the hub; what did not change since is not downloaded again.

    Args:
        name: USER/NAME.

    Raises:
        FileNotFoundError: There is no such repository, or it cannot be reached; the message has one line.
    """
    if not NAME.fullmatch(name):
        raise FileNotFoundError(f"{PREFIX}{name} is no name of the Hugging Face hub; give {PREFIX}USER/NAME")
    from huggingface_hub import snapshot_download

    folder = Path()
    with _one_line(f"{PREFIX}{name} cannot be read", name):
        for kind in WEIGHTS:
            folder = Path(snapshot_download(name, allow_patterns=TEXTS + kind))
            if any(path.match(pattern) for path in folder.rglob("*") for pattern in kind):
                return folder
    raise FileNotFoundError(
        f"{PREFIX}{name} holds no weights that vlbert_jax reads: neither state, model.safetensors nor pytorch_model.bin"
    )


def check_push(name: str) -> None:
    """Raise ValueError where nothing can be uploaded to USER/NAME: it is no name, or nobody is logged in."""
    from huggingface_hub import get_token

    if not NAME.fullmatch(name) or "/" not in name:
        raise ValueError(f"--push={name}: give USER/NAME, the repository of the Hugging Face hub to upload to")
    if not get_token():
        raise ValueError(f"--push={name}: nobody is logged in; run `hf auth login`, or set HF_TOKEN")


def push_folder(folder: Path, name: str, files: set[str]) -> str:
    """Upload a complete folder of weights, and return its address; a new repository is private.

    Args:
        folder: Folder that `convert` wrote.
        name: USER/NAME.
        files: Names of the files and folders in `folder` that are uploaded.

    Raises:
        FileNotFoundError: The hub refuses the upload or cannot be reached; the message has one line.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    patterns = [pattern for file in sorted(files) for pattern in (file, f"{file}/*")]
    with _one_line(f"{folder} is complete, but it was not uploaded to {name}", name):
        api = HfApi()
        address = str(api.create_repo(name, private=True, exist_ok=True))
        api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=patterns, commit_message="Upload from vlbert_jax"
        )
    return address


@contextlib.contextmanager
def _one_line(what: str, name: str) -> Iterator[None]:
    """Turn the errors of the hub and of the network into one FileNotFoundError that names the remedy."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        reason = "access must be granted first: ask for it on the page of the model, then run `hf auth login`"
        raise FileNotFoundError(f"{what}: {reason}") from error
    except errors.RepositoryNotFoundError as error:
        reason = f"there is no model {name}, or it is private: check the name, or run `hf auth login`"
        raise FileNotFoundError(f"{what}: {reason}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        login = ": the token has no right to do this; run `hf auth login` with another one"
        remedy = login if status in (401, 403) else "; try again later"
        raise FileNotFoundError(f"{what}: the hub answered {status}{remedy}") from error
    except Exception as error:
        if not isinstance(error, OSError | ValueError) and "http" not in type(error).__module__:
            raise
        offline = type(error).__name__ in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError")
        reason = "the hub cannot be reached; check the network, HF_ENDPOINT and HF_HUB_OFFLINE" if offline else ""
        raise FileNotFoundError(f"{what}: {reason or type(error).__name__}") from error
