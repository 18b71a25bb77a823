"""The flags of `vlbert_jax.main`, which its docstring describes, and the checks of a config."""

import difflib
import math
import pathlib
import re
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from vlbert_jax import configs
from vlbert_jax.weights.stored_config import flat_config

# Limits of fields whose mistakes would otherwise fail deep in a library, or never.
COUNTS = ("batch_size", "grad_accumulation_steps", "total_steps", "keep_checkpoints", "data.sequence_length")
COUNTS += tuple(f"model.encoder.{x}" for x in ("hidden_size", "num_layers", "num_heads", "mlp_size", "max_positions"))
AMOUNTS = ("learning_rate", "warmup_steps", "opening.steps", "opening.learning_rate", "log_every_steps")
AMOUNTS += ("eval_every_steps", "checkpoint_every_steps", "data.num_threads", "data.prefetch", "data.remember_records")
SHARES = ("model.encoder.dropout_rate", "model.region_head.dropout_rate", "data.flip_probability")
SHARES += ("data.mask_words", "data.mask_regions")
LIMITS = dict.fromkeys(COUNTS, (1, math.inf)) | dict.fromkeys(AMOUNTS, (0, math.inf)) | dict.fromkeys(SHARES, (0, 1))
CHOICES = {"compute_dtype": ("bfloat16", "float32"), "matmul_precision": ("default", "high", "highest")}


def check_config(config: ml_collections.ConfigDict):
    """Raise ValueError for the first field with an impossible value; fields that a recipe lacks are skipped."""
    fields = flat_config(config.to_dict())
    for name, (least, greatest) in LIMITS.items():
        if name in fields and not least <= fields[name] <= greatest:
            limits = f"{least} or more" if greatest == math.inf else f"{least} to {greatest}"
            raise ValueError(f"config.{name} is {fields[name]}; it can be {limits}")
    for name, choices in CHOICES.items():
        if name in fields and fields[name] not in choices:
            raise ValueError(f"config.{name} is {fields[name]!r}; it can be {', '.join(choices[:-1])} or {choices[-1]}")
    width, heads = (fields.get(f"model.encoder.{name}", 1) for name in ("hidden_size", "num_heads"))
    if width % heads:
        raise ValueError(f"config.model.encoder.num_heads={heads} does not divide hidden_size={width}")
    length, positions = fields.get("data.sequence_length", 0), fields.get("model.encoder.max_positions", math.inf)
    if length + 2 > positions:  # of the last word and [END]; a missing row would read the last one
        raise ValueError(
            f"data.sequence_length={length} needs {length + 2} positions; model.encoder.max_positions={positions}"
        )


def recipe_path(value: str) -> str:
    """Return the file of a recipe, with its variant: "pretrain:demo" -> "FOLDER/pretrain.py:demo".

    A path is returned as it is. Raises ValueError for an unknown name, and for the path of a recipe of the package
    that does not exist, which is usual outside a checkout.
    """
    recipe, colon, variant = value.partition(":")
    path, folder = pathlib.Path(recipe), pathlib.Path(next(iter(configs.__path__)))
    names = sorted(file.stem for file in folder.glob("*.py") if file.stem not in ("__init__", "common"))
    if path.suffix or len(path.parts) != 1:
        if path.stem in names and not path.exists():
            named = f"--config={path.stem}{colon}{variant}"
            raise ValueError(f"there is no file {recipe}; the recipe that comes with the package is {named}")
        return value
    if recipe not in names:
        close = difflib.get_close_matches(recipe, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"unknown recipe {recipe!r}; the package has {', '.join(names)}.{hint} "
            "Another recipe is given by its path: --config=FOLDER/FILE.py"
        )
    return f"{folder / recipe}.py{colon}{variant}"


def _with_recipe_paths(argv: list[str]) -> list[str]:
    """Replace the name of a recipe in --config=NAME or --config NAME by its path."""
    replaced = list(argv)
    for i, arg in enumerate(argv):
        if match := re.fullmatch(r"(--?config=)(.*)", arg):
            replaced[i] = match[1] + recipe_path(match[2])
        elif arg in ("-config", "--config") and i + 1 < len(argv):
            replaced[i + 1] = recipe_path(argv[i + 1])
    return replaced


def parse_command(argv: list[str]) -> tuple[ml_collections.ConfigDict, pathlib.Path, str, tuple]:
    """Return config, workdir, mode, and the arguments of `hosts.join`.

    Raises:
        ValueError: A flag is wrong; the message is one line, with the nearest name for a misspelt field.
    """
    argv = _with_recipe_paths(argv)
    try:
        for with_fields in (False, True):  # first without the fields, to find which of them exist
            values = flags.FlagValues()
            flags.DEFINE_string("workdir", None, "where checkpoints and metrics go", flag_values=values)
            flags.DEFINE_enum("mode", "train", ["train", "evaluate", "compile"], "what to do", flag_values=values)
            flags.DEFINE_string("coordinator", None, "address of process 0", flag_values=values)
            flags.DEFINE_integer("num_processes", None, "of the run", lower_bound=1, flag_values=values)
            flags.DEFINE_integer("process_id", None, "of this process", lower_bound=0, flag_values=values)
            given = [arg for arg in argv if with_fields or not re.match(r"--?(no)?config\.", arg)]
            config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=given, lock_config=True)
            values(given)
            if values.config is None:
                raise ValueError("--config=RECIPE[:VARIANT] is needed")
            names = list(flat_config(values.config.to_dict()))
            for name in re.findall(r"^--?(?:no)?config\.([^=\n]+)", "\n".join(argv), re.MULTILINE):
                if name not in names:
                    (nearest,) = difflib.get_close_matches(name, names, n=1, cutoff=0)
                    raise ValueError(f"the config has no field {name!r}; the nearest name is {nearest!r}")
    except (flags.Error, OSError) as error:  # the last line is the message of the variant or the parser
        raise ValueError(re.sub(r"^\w+Error: ", "", str(error).strip().splitlines()[-1].strip())) from error
    recipe = pathlib.Path(config_flags.get_config_filename(values["config"]).replace(".py:", "_"))
    workdir = values.workdir or f"workdirs/{recipe.name.removesuffix('.py')}"
    for path in (workdir, values.config.data.data_dir):
        if "://" in path:
            raise ValueError(f"{path} is not a folder; mount the bucket and give that path (launch/README.md, Storage)")
    place = values.coordinator, values.num_processes, values.process_id
    check_config(values.config)
    return values.config, pathlib.Path(workdir), values.mode, place

# Fields that may change between runs of a workdir: they determine where and when values are computed or written,
# not the values. `total_steps` is one of them with the constant schedule, which does not depend on it.
FREE_FIELDS = (
    "log_every_steps",
    "eval_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "best_metric",
    "report",
    "profile_steps",
    "allow_other_data",
    "grad_accumulation_steps",
    "mesh.",
    "topology",
    "num_slices",
    "init.",
    "data.data_dir",
    "data.num_threads",
    "data.prefetch",
    "data.remember_records",
    "model.encoder.scan_layers",
    "model.encoder.remat",
    "model.region_head.roi_chunk",
    "model.region_head.remat",
)


def config_differences(old: dict[str, Any], new: dict[str, Any], fixed: tuple[str, ...] = ("",)) -> list[str]:
    """Return the dotted names of fields below `fixed` that differ and may not; both configs are nested dicts."""
    old, new = flat_config(old), flat_config(new)
    constant = old.get("optimizer.schedule") == new.get("optimizer.schedule") == "constant"
    free = FREE_FIELDS + (("total_steps",) if constant else ())
    missing = object()
    differ = [name for name in old | new if old.get(name, missing) != new.get(name, missing)]
    return [name for name in differ if name.startswith(fixed) and not _matches(name, free)]


def _matches(name: str, fields: tuple[str, ...]) -> bool:
    return any(name.startswith(field) if field.endswith(".") else name == field for field in fields)
