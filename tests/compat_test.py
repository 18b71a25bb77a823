"""Test private interfaces of other packages, which may change in any release."""

import pathlib
import re
import subprocess
import sys

from tests.helpers import ROOT

USE = """
import socket, jax
from vlbert_jax.training.compat import distributed
with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
jax.distributed.initialize(address, 1, 0)
state = distributed.global_state
assert (state.process_id, state.num_processes, state.coordinator_address) == (0, 1, address), vars(state)
for name in ("key_value_set", "key_value_dir_get", "blocking_key_value_get", "wait_at_barrier"):
    assert hasattr(state.client, name), f"jax._src.distributed: its client has no {name} any more"
state.client.key_value_set("a/b", "c")
assert state.client.key_value_dir_get("a/") == [("a/b", "c")]
assert state.client.blocking_key_value_get("a/b", 1000) == "c"
state.client.wait_at_barrier("all", 1000)
"""


def test_private_interfaces_exist():
    result = subprocess.run([sys.executable, "-c", USE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_only_compat_imports_private_modules():
    for folder in ("vlbert_jax", "data_prep"):
        for path in pathlib.Path(ROOT / folder).rglob("*.py"):
            if path.name != "compat.py":
                found = re.findall(r"^.*\b(?:jax|flax|optax|orbax|grain|tfds)[\w.]*\._\w+.*$", path.read_text(), re.M)
                assert not found, f"{path}: {found}"
