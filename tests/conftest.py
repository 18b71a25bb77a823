"""Configure all tests: eight CPU devices, errors for rank promotion, and checks of shapes."""

import gc
import importlib.metadata
import os
import signal

os.environ["JAX_PLATFORMS"] = "cpu"
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# The comparisons with the recordings (golden_test.py) run under the default flags in `make test`.
if "--xla_backend_optimization_level" not in os.environ["XLA_FLAGS"] and "VLBERT_DEFAULT_XLA" not in os.environ:
    # Most compiled programs run once, so less optimization saves 75 % of the compilation time.
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if importlib.metadata.version("jax").startswith("0.10."):  # an unknown flag ends the process
        # One part per program: to divide it for the cores, which the other tests use as well, takes another 10 %.
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

import logging  # noqa: E402
import tempfile  # noqa: E402

# Resumed runs, evaluations and commands use programs that earlier tests have compiled. A folder in
# the environment variable is kept after the tests. Small programs are many, so they are kept too.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# This precedes every import of the package, because the hook rewrites modules on import.
jaxtyping.install_import_hook("vlbert_jax", "beartype.beartype")

# A process in the background of a script ignores Ctrl-C, and so would the commands that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The modules are never garbage; searching them takes a twentieth of the time of the tests.
gc.freeze()
gc.set_threshold(50_000, 20, 50)


def pytest_configure(config):
    """Ignore two warnings of other libraries; all others are errors (pyproject.toml)."""
    for warning in (
        # nnx.State is a generic over typing.Hashable.
        "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning",
        # ml_collections loads config files with a deprecated function.
        "ignore:the load_module:DeprecationWarning",
    ):
        config.addinivalue_line("filterwarnings", warning)


@pytest.fixture(autouse=True)
def restored_logging():
    """Restore log handlers and levels, which the commands change."""
    root, package = logging.getLogger(), logging.getLogger("vlbert_jax")
    before, levels = list(root.handlers), (root.level, package.level)
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
    root.setLevel(levels[0])
    package.setLevel(levels[1])
