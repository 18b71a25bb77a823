"""Reading weights from Orbax checkpoints."""

import logging
import pathlib
from typing import Any

import jax
import numpy as np

from vlbert_jax.weights.checksums import damage_of, newest_intact

log = logging.getLogger(__name__)


def newest_step(workdir: str | pathlib.Path) -> int | None:
    """Return the step of the newest complete checkpoint in a workdir, without opening it."""
    folder = pathlib.Path(workdir) / "checkpoints"
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit() and (path / "state").exists()]
    return max(steps, default=None)


def read_checkpoint(path: str | pathlib.Path) -> dict[str, Any]:
    """Read a checkpoint as {"params": ..., "constants": ...}, nested dicts of NumPy arrays.

    Args:
        path: a workdir, of which the newest checkpoint that is not damaged is read, or the folder of one step
            (`WORKDIR/checkpoints/STEP`).

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: The checkpoint is damaged, or all those of the workdir are.
    """
    import orbax.checkpoint as ocp  # it takes a second, and other weights need it not

    path = pathlib.Path(path).absolute()
    newest = newest_intact(path / "checkpoints", "train or convert again")
    path = newest or path
    if not (path / "state").exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}; give a workdir, or the folder of one step in it")
    if newest is None and (damage := damage_of(path)):
        raise ValueError(f"{path} is damaged: {damage}; train or convert again, or use another step")
    log.info("reading weights from %s, %s", path, expected_reading(path))
    handler = ocp.PyTreeCheckpointHandler()  # a Checkpointer would warn about the missing parent folder of a checkpoint
    try:
        tree = handler.metadata(path / "state").tree
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path / 'state'} is damaged; its metadata cannot be read") from error
    stored = {name: tree[name] for name in ("params", "constants") if tree.get(name)}
    # The mesh that wrote the arrays may not exist here, so they are read as NumPy arrays.
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
    args = ocp.args.PyTreeRestore(stored, restore_args=as_numpy, partial_restore=True)
    return handler.restore(path / "state", args=args)


def expected_reading(path: pathlib.Path) -> str:
    """Return the size of a file or folder of weights, and how long reading takes at least.

    440 MB of safetensors took 0.65 s on 2 cores from the memory of the system.
    """
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / 1e6
    return f"{size:,.1f} MB; this takes about {max(size * 0.65 / 440, 0.1):.1f} s, or longer from a slow disk"
