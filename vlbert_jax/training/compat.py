"""Private interfaces of JAX that training needs; tests/compat_test.py names the one that a release breaks."""

# `distributed.global_state` has `client` (the key-value store and the barriers of the coordinator), `process_id`,
# `num_processes` and `coordinator_address`. JAX has no public name for the client; Orbax imports it from here too.
from jax._src import distributed

__all__ = ["distributed"]
