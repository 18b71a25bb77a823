"""The recipes, one module per task; `vlbert_jax.configs` is their name for imports."""
