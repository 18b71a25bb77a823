"""`config.data.scorer`: the public task whose file and official scores an evaluation writes."""

from collections.abc import Iterable


def scorer_of(config, known: Iterable[str], usual: str = "") -> str:
    """Return the name of the scorer of a run, `usual` where the field is empty or missing.

    Raises:
        ValueError: It is none of `known`.
    """
    given = config.data.get("scorer", "") or usual
    names = [name for name in known if name]
    if given and given not in names:
        raise ValueError(f"config.data.scorer is {given!r}; it must be empty or one of {', '.join(names)}")
    return given
