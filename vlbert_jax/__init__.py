"""VL-BERT (Su et al., ICLR 2020) in JAX: one Transformer that reads words and image regions together."""

from vlbert_jax.command import end_at_ctrl_c

TYPE_CHECKING = False  # as in typing, which is not imported before `end_at_ctrl_c` is called
if TYPE_CHECKING:
    from vlbert_jax.fine_tune import fine_tune as fine_tune
    from vlbert_jax.prediction.predictor import load as load

__version__ = "0.1.0"
__all__ = ["fine_tune", "load"]

end_at_ctrl_c()  # before the slow imports of a command


def __dir__() -> list[str]:
    """Return the names of the module with `load` and `fine_tune`, for completion and `help`."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    """Import `load` or `fine_tune` when it is first used, so that `import vlbert_jax` imports nothing else."""
    if name == "load":
        from vlbert_jax.prediction.predictor import load

        return load
    if name == "fine_tune":
        from vlbert_jax.fine_tune import fine_tune

        globals()[name] = fine_tune  # the import has put the module of this name here
        return fine_tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
