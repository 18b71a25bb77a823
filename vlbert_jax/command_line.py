"""The flags of `vlbert_jax.main`; its docstring tells them."""

import difflib
import pathlib
import re

import ml_collections
from absl import flags
from ml_collections import config_flags

from vlbert_jax import checkpoint


def parse(argv: list[str]) -> tuple[ml_collections.ConfigDict, pathlib.Path, str, tuple]:
    """Config, workdir, mode, and what `hosts.join` takes.

    Raises ValueError in one line, with the nearest name for a misspelt field.
    """
    try:
        for with_fields in (False, True):  # first without the fields, to tell which of them exist
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
                raise ValueError("--config=FILE[:VARIANT] is needed")
            names = list(checkpoint.flat_config(values.config.to_dict()))
            for name in re.findall(r"^--?(?:no)?config\.([^=\n]+)", "\n".join(argv), re.MULTILINE):
                if name not in names:
                    (nearest,) = difflib.get_close_matches(name, names, n=1, cutoff=0)
                    raise ValueError(f"the config has no field {name!r}; the nearest name is {nearest!r}")
    except (flags.Error, OSError) as error:  # the last line is what the variant or the parser said
        raise ValueError(re.sub(r"^\w+Error: ", "", str(error).strip().splitlines()[-1].strip())) from error
    recipe = pathlib.Path(config_flags.get_config_filename(values["config"]).replace(".py:", "_"))
    workdir = values.workdir or f"workdirs/{recipe.name.removesuffix('.py')}"
    for path in (workdir, values.config.data.data_dir):
        if "://" in path:
            raise ValueError(f"{path} is no folder; mount the bucket and give that path (launch/README.md, Storage)")
    place = values.coordinator, values.num_processes, values.process_id
    return values.config, pathlib.Path(workdir), values.mode, place
