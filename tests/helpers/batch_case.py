"""Batches as flat dicts."""


def fields_of(batch) -> dict:
    """Every field that a batch and its targets have, as `make_batch` takes them."""
    fields = vars(batch) | vars(batch.targets)
    return {name: array for name, array in fields.items() if name != "targets" and array is not None}
