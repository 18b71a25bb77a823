"""Convert batches to flat dicts."""


def fields_of(batch) -> dict:
    """Return all fields of a batch and its targets, as arguments of `make_batch`."""
    fields = vars(batch) | vars(batch.targets)
    return {name: array for name, array in fields.items() if name != "targets" and array is not None}
