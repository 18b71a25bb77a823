"""Reading weights from Orbax checkpoints."""

import logging
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

log = logging.getLogger(__name__)



def newest_step(workdir: str | pathlib.Path) -> int | None:
    """The newest whole checkpoint in a workdir, without opening it."""
    folder = pathlib.Path(workdir).expanduser() / "checkpoints"
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit() and (path / "state").exists()]
    return max(steps, default=None)


def read_checkpoint(path: str | pathlib.Path) -> dict[str, Any]:
    """{"params": ..., "constants": ...}: nested dicts of numpy arrays.

    `path` is a workdir, or the folder of one step (`WORKDIR/checkpoints/STEP`). Raises FileNotFoundError, or
    ValueError for a damaged checkpoint.
    """
    path = pathlib.Path(path).expanduser().absolute()
    if (step := newest_step(path)) is not None:
        path = path / "checkpoints" / str(step)
    if not (path / "state").exists():
        raise FileNotFoundError(f"no checkpoint at {path}: give a workdir, or the folder of one step in it")
    log.info("reading weights from %s", path)
    handler = ocp.PyTreeCheckpointHandler()  # a Checkpointer warns that what is one level above is not here
    try:
        tree = handler.metadata(path / "state").tree
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path / 'state'} is damaged: its metadata cannot be read") from error
    wanted = {name: tree[name] for name in ("params", "constants") if tree.get(name)}
    # As numpy: the mesh that wrote them may not exist here.
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
    return handler.restore(path / "state", args=args)
