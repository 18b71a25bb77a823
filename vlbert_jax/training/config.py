"""The flags of `vlbert_jax.main`, which its docstring describes, and the checks of a config."""

import difflib
import logging
import math
import pathlib
import re
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from vlbert_jax.files import is_address, read_json_object, user_path
from vlbert_jax.training.recipes import checkout_importable, with_recipe_paths
from vlbert_jax.weights.stored_config import flat_config, upgraded

log = logging.getLogger(__name__)

# Limits of fields whose mistakes would otherwise fail deep in a library, or never.
COUNTS = ("batch_size", "grad_accumulation_steps", "total_steps", "keep_checkpoints", "data.sequence_length")
COUNTS += tuple(f"model.encoder.{x}" for x in ("hidden_size", "num_layers", "num_heads", "mlp_size", "max_positions"))
AMOUNTS = ("learning_rate", "warmup_steps", "opening.steps", "opening.learning_rate", "log_every_steps")
AMOUNTS += ("eval_every_steps", "checkpoint_every_steps", "data.num_threads", "data.prefetch", "data.remember_records")
SHARES = ("model.encoder.dropout_rate", "model.region_head.dropout_rate", "data.flip_probability")
SHARES += ("data.mask_words", "data.mask_regions", "data.region_confidence")
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


# Fields that are changed most often, for --help.
COMMON_FIELDS = {
    "total_steps": "optimizer updates",
    "batch_size": "sequences per update over all devices",
    "grad_accumulation_steps": "parts into which a batch is cut, to save memory; the result is the same",
    "learning_rate": "peak of the applied rate",
    "warmup_steps": "updates until the peak",
    "optimizer.weight_decay": "weight decay of adamw and bertadam",
    "seed": "of parameters, data order, masking and dropout",
    "compute_dtype": "bfloat16 or float32",
    "log_every_steps": "updates between two rows of metrics.jsonl",
    "eval_every_steps": "updates between two evaluations; 0 = only at the end",
    "checkpoint_every_steps": "updates between two checkpoints; 0 = only at the end",
    "report": "whether to write report/index.html at every evaluation",
    "tracker": "wandb = log to Weights & Biases as well as to TensorBoard",
    "init.checkpoint": "workdir or weights that the run starts from; init.bert and init.resnet likewise",
    "init.scratch": "whether the run may start from random weights",
    "data.data_dir": "folder of the records",
    "mesh.data": "devices among which a batch is divided; mesh.fsdp and mesh.tensor divide the parameters",
}
# Names that other programs have for fields -> the field here, and a remark.
OTHER_NAMES = {
    "lr": ("learning_rate", ""),
    "rate": ("learning_rate", ""),
    "bs": ("batch_size", ""),
    "batch": ("batch_size", ""),
    "epochs": ("total_steps", "; an epoch is the number of training examples divided by batch_size"),
    "num_epochs": ("total_steps", "; an epoch is the number of training examples divided by batch_size"),
    "steps": ("total_steps", ""),
    "num_steps": ("total_steps", ""),
    "max_steps": ("total_steps", ""),
    "num_train_steps": ("total_steps", ""),
    "wd": ("optimizer.weight_decay", ""),
    "weight_decay": ("optimizer.weight_decay", ""),
    "warmup": ("warmup_steps", ""),
    "dropout": ("model.encoder.dropout_rate", ""),
    "dtype": ("compute_dtype", ""),
    "precision": ("compute_dtype", ""),
    "num_workers": ("data.num_threads", ""),
    "accumulate_steps": ("grad_accumulation_steps", ""),
    "gradient_accumulation_steps": ("grad_accumulation_steps", ""),
    "random_seed": ("seed", ""),
    "save_steps": ("checkpoint_every_steps", ""),
    "data_dir": ("data.data_dir", ""),
    "checkpoint": ("init.checkpoint", ""),
}


def expand_paths(config: ml_collections.ConfigDict):
    """Apply `user_path` to the fields that are paths: texts of config.data and config.init with a slash or `~`."""
    for block in (config.data, config.init):
        for name, value in block.items():
            if isinstance(value, str) and ("/" in value or value.startswith("~")):
                block[name] = user_path(value)


class Command(NamedTuple):
    """What the flags of the command say."""

    config: ml_collections.ConfigDict
    workdir: pathlib.Path | str  # folder, or an address
    mode: str  # train | evaluate | probe | compile
    place: tuple  # arguments of `hosts.join`
    print_config: bool


def parse_command(argv: list[str]) -> Command:
    """Return what the flags say; the flags are those of `vlbert_jax.main`.

    Raises:
        ValueError: A flag is wrong; the message is one line, with the right name for a misspelt field.
    """
    argv = with_recipe_paths(argv)
    try:
        with checkout_importable():
            values = _parse_flags(argv)
    except (flags.Error, OSError, ImportError) as error:  # the last line is the message of the variant or the parser
        raise ValueError(re.sub(r"^\w+Error: ", "", str(error).strip().splitlines()[-1].strip())) from error
    named = re.sub(r":?@.*", "", config_flags.get_config_filename(values["config"]))  # without a table
    recipe = pathlib.Path(named.replace(".py:", "_"))
    workdir = user_path(values.workdir or f"workdirs/{recipe.name.removesuffix('.py')}")
    expand_paths(values.config)
    for place in filter(is_address, (workdir, values.config.data.data_dir)):
        from vlbert_jax.storage.bucket import check_address  # folders need nothing of it

        check_address(place)
    for name, path in values.config.data.items():
        if isinstance(path, str) and is_address(path) and name != "data_dir":
            raise ValueError(
                f"config.data.{name}={path} is an address; only config.data.data_dir may be one: store the file there "
                f"and give its name, or copy it to a disk"
            )
    place = values.coordinator, values.num_processes, values.process_id
    check_config(values.config)
    workdir = workdir if is_address(workdir) else pathlib.Path(workdir)
    return Command(values.config, workdir, values.mode, place, values.print_config)


def _parse_flags(argv: list[str]) -> flags.FlagValues:
    """Return the parsed flags; the first of two passes finds which fields the config has."""
    for with_fields in (False, True):
        values = flags.FlagValues()
        flags.DEFINE_string("workdir", None, "where checkpoints and metrics go", flag_values=values)
        flags.DEFINE_enum("mode", "train", ["train", "evaluate", "probe", "compile"], "what to do", flag_values=values)
        flags.DEFINE_bool("print_config", False, "print the config and end", flag_values=values)
        flags.DEFINE_string("coordinator", None, "address of process 0", flag_values=values)
        flags.DEFINE_integer("num_processes", None, "of the run", lower_bound=1, flag_values=values)
        flags.DEFINE_integer("process_id", None, "of this process", lower_bound=0, flag_values=values)
        given = [arg for arg in argv if with_fields or not re.match(r"--?(no)?config\.", arg)]
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=given, lock_config=True)
        rest = values(given, known_only=not with_fields)
        if values.config is None:
            raise ValueError("--config=RECIPE[:VARIANT] is needed; --list prints the recipes")
        if not with_fields:
            _check_names(argv, rest[1:], list(flat_config(values.config.to_dict())))
    if rest[1:]:
        raise ValueError(f"unexpected argument {rest[1]!r}; the recipe is given by --config=RECIPE[:VARIANT]")
    return values


def _check_names(argv: list[str], unknown: list[str], names: list[str]) -> None:
    """Raise ValueError for a field that the config lacks, and for an unknown flag that is the name of a field.

    Args:
        argv: All arguments.
        unknown: Arguments that are not flags of the command.
        names: Dotted names of the fields of the config.
    """
    for name in re.findall(r"^--?(?:no)?config\.([^=\n]+)", "\n".join(argv), re.MULTILINE):
        if name not in names:
            field, remark = OTHER_NAMES.get(name.rpartition(".")[2], ("", ""))
            if field in names:
                raise ValueError(f"the config has no field {name!r}; its name here is {field!r}{remark}")
            (nearest,) = difflib.get_close_matches(name, names, n=1, cutoff=0)
            raise ValueError(f"the config has no field {name!r}; the nearest name is {nearest!r}")
    for name, value in re.findall(r"^--?([^=\n]+)(.*)$", "\n".join(unknown), re.MULTILINE):
        field, remark = (name, "") if name in names else OTHER_NAMES.get(name, ("", ""))
        if field in names:
            raise ValueError(f"--{name} is a field of the config: write --config.{field}{value or '=VALUE'}{remark}")


# Fields that may change between runs of a workdir: they determine where and when values are computed or written,
# not the values. `total_steps` is one of them with the constant schedule, which does not depend on it.
FREE_FIELDS = (
    "log_every_steps",
    "eval_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "best_metric",
    "early_stopping",
    "report",
    "tracker",
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


# Fields that shape the state of a training run, or count in training alone: they change no number of an evaluation.
OF_TRAINING = (
    "optimizer.",
    "model.train_region_head",
    "model.region_head.frozen_stages",
    "model.region_head.frozen_batch_norm",
    "model.region_head.dropout_rate",
    "model.region_head.projection_gain_init",
    "model.region_head.geometry_gain_init",
    "model.encoder.dropout_rate",
    "model.encoder.init_deviation",
    "model.encoder.text_visual_gain_init",
    "model.encoder.region_visual_gain_init",
)


def with_fields_of_training(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """Return the config of an evaluation with the run's values of `OF_TRAINING`, where they differ; log them.

    Args:
      config: the config of the evaluation.
      workdir: folder of the run, whose config.json is read; without one the config stays as it is.
    """
    path = workdir / "config.json"
    if not path.is_file():
        return config
    stored = read_json_object(path, "remove it, and the run is read as it is")
    stored = flat_config(upgraded(stored, stored.pop("schema", None), str(path)))
    own = {name: value for name, value in flat_config(config.to_dict()).items() if _matches(name, OF_TRAINING)}
    found = {name: stored[name] for name, value in own.items() if stored.get(name, value) != value}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    if found:
        listed = ", ".join(f"{name}={value!r}" for name, value in found.items())
        log.info("taken from %s, because they change no number of an evaluation: %s", path, listed)
        config = config.copy_and_resolve_references()
        config.update_from_flattened_dict(found)
    return config


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
