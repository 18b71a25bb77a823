"""The recipes of the package: found by name or path from any folder, and listed with their variants."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import pathlib
import re
import sys
from collections.abc import Iterator

from vlbert_jax import configs
from vlbert_jax.files import is_address, user_path
from vlbert_jax.storage.data import local_data
from vlbert_jax.storage.inputs import copy_of_results
from vlbert_jax.weights.shipped import locate_weights

OF_TABLES = ("own",)  # recipes that read the manifest of a table
NO_RECIPES = ("__init__", "common", "siblings")


def recipe_folder() -> pathlib.Path:
    """Return the folder of the recipes: `configs` of a checkout, or their place in an installed package."""
    return pathlib.Path(next(iter(configs.__path__)))


def recipe_names() -> list[str]:
    """Return the names of the recipes of the package."""
    return sorted(file.stem for file in recipe_folder().glob("*.py") if file.stem not in NO_RECIPES)


def variants_of(recipe: str) -> dict[str, str]:
    """Return variant -> the first line of its docstring; the first one is the default."""
    variants = importlib.import_module(f"{configs.__name__}.{recipe}").VARIANTS
    return {variant.__name__: (variant.__doc__ or "").strip().splitlines()[0] for variant in variants}


def list_recipes() -> str:
    """Return a line for each recipe of the package and for each of its variants."""
    lines = []
    for recipe in recipe_names():
        about = (importlib.import_module(f"{configs.__name__}.{recipe}").__doc__ or "").strip().splitlines()[0]
        lines.append(f"{recipe}: {about}")
        for number, (variant, line) in enumerate(variants_of(recipe).items()):
            lines.append(f"  {recipe}:{variant}{' (default)' if number == 0 else ''}: {line}")
    return "\n".join(lines)


def recipe_path(value: str) -> str:
    """Return the file of a recipe, with its variant: "pretrain:demo" -> "FOLDER/pretrain.py:demo".

    A path is expanded. A name, with or without ".py" and a leading "configs/", is a recipe of the package unless it is
    a file here. Another path is returned as it is, completed by ".py" where only that file exists. Raises ValueError
    for an unknown name, and for another path of a file that does not exist but has the name of a recipe of the package.
    """
    recipe, colon, variant = value.partition(":")
    recipe = user_path(recipe)
    path, names = pathlib.Path(recipe), recipe_names()
    with_suffix = path.with_suffix(".py")
    for file in (path, with_suffix):
        if file.is_file() and file.suffix:
            return f"{file}{colon}{variant}"
    if path.parts[:-1] in ((), ("configs",)) and path.suffix in ("", ".py") and path.stem in names:
        return f"{recipe_folder() / path.stem}.py{colon}{variant}"
    if path.suffix or len(path.parts) != 1:
        if path.stem in names:
            named = f"--config={path.stem}{colon}{variant}"
            raise ValueError(f"there is no file {with_suffix}; the recipe that comes with the package is {named}")
        return f"{with_suffix}{colon}{variant}"
    close = difflib.get_close_matches(recipe, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"unknown recipe {recipe!r}; the package has {', '.join(names)}.{hint} "
        "Another recipe is given by its path: --config=FOLDER/FILE.py"
    )


def with_recipe_paths(argv: list[str]) -> list[str]:
    """Replace the name of a recipe in --config=NAME or --config NAME by its path.

    The variant of a recipe of OF_TABLES becomes VARIANT@TABLE@CHECKPOINT, from the flags that name the two.
    """
    replaced = list(argv)
    for i, arg in enumerate(argv):
        if match := re.fullmatch(r"(--?config=)(.*)", arg):
            replaced[i] = match[1] + _completed(recipe_path(match[2]), argv)
        elif arg in ("-config", "--config") and i + 1 < len(argv):
            replaced[i + 1] = _completed(recipe_path(argv[i + 1]), argv)
    return replaced


def _tables_of(argv: list[str]) -> str:
    """Return @TABLE@CHECKPOINT as the flags name them; without a checkpoint the workdir, if it has a run.

    Of what is at an address, a copy on local disk is named; of a table it has the JSON files. Raises ValueError where
    it cannot be read.
    """
    values = {"data.data_dir": "data", "data.texts": "", "init.checkpoint": ""}
    workdirs = [match[1] for arg in argv if (match := re.fullmatch(r"--?workdir=(.*)", arg))]
    for i, arg in enumerate(argv):
        if match := re.fullmatch(r"--?config\.(data\.data_dir|data\.texts|init\.checkpoint)(?:=(.*))?", arg):
            following = argv[i + 1] if i + 1 < len(argv) else ""
            values[match[1]] = following if match[2] is None else match[2]
    data_dir, texts, checkpoint = (user_path(value) for value in values.values())
    workdir = user_path(workdirs[-1]) if workdirs else ""
    try:
        if is_address(workdir) and not checkpoint:
            workdir = str(copy_of_results(workdir))
        if is_address(data_dir) and texts:
            data_dir = str(local_data(data_dir, [texts], ".json"))
        checkpoint = str(locate_weights(checkpoint)) if is_address(checkpoint) else checkpoint
    except OSError as error:
        raise ValueError(str(error)) from None
    if not checkpoint and workdir and pathlib.Path(workdir, "config.json").is_file():
        checkpoint = workdir
    return f"@{pathlib.Path(data_dir, texts)}@{checkpoint}" if texts else f"@@{checkpoint}" if checkpoint else ""


def _completed(recipe: str, argv: list[str]) -> str:
    path, _, variant = recipe.partition(":")
    about = _tables_of(argv) if pathlib.Path(path).stem in OF_TABLES else ""
    return f"{path}:{variant}{about}" if about else recipe


@contextlib.contextmanager
def checkout_importable() -> Iterator[None]:
    """Let a user's recipe in another folder say `from configs import pretrain`, as the recipes of a checkout may.

    An installed package has only `vlbert_jax.configs`, which a recipe may always import.
    """
    root = str(recipe_folder().parent)
    is_checkout = pathlib.Path(root, "vlbert_jax").is_dir()
    if is_checkout:
        sys.path.append(root)
    try:
        yield
    finally:
        if is_checkout:
            sys.path.remove(root)
