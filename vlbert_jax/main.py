"""Train, evaluate or probe a recipe, or report the resources that its training would need.

python -m vlbert_jax.main --config=RECIPE[:VARIANT] [--workdir=DIR] [--mode=train|evaluate|probe|compile]
    [--config.FIELD=VALUE ...] [--coordinator=HOST:PORT --num_processes=N --process_id=I]

RECIPE is the name of a recipe of the package or the path of a file such as configs/pretrain.py. DIR is a folder or an
address (gs://, s3://), and defaults to workdirs/RECIPE_VARIANT. The same command continues an interrupted run.
--mode=evaluate scores the run, or --config.init.checkpoint, on config.data.eval_split; the predictions of a task are
written to DIR/predictions. --mode=probe is for pre-trained models: it removes more and more regions, and then words, of
captions, and scores how well the other is still predicted, and where heads look; the results are in DIR/probes.
--mode=compile needs neither the data nor the accelerators: --config.topology=v5e:16x16 prints memory, collectives and
the predicted time. Several processes find each other under srun, mpirun and on TPU hosts; elsewhere pass the last three
flags to each process (launch/).
--help prints this text, --version the version of the package, --list the recipes, and --print_config all fields of the
config with their values.

Examples:
  python -m vlbert_jax.main --config=pretrain --workdir=workdirs/demo
  python -m vlbert_jax.main --config=vqa --config.init.checkpoint=workdirs/demo
  python -m vlbert_jax.main --config=vqa --mode=evaluate
  python -m vlbert_jax.main --config=pretrain --workdir=workdirs/demo --mode=probe
  python -m vlbert_jax.main --config=pretrain:base_e2e --config.batch_size=128 --print_config

Exit status: 0 after success; 2 after an error, which one line explains (VLBERT_DEBUG=1 shows the traceback); 143 after
SIGTERM and 130 after Ctrl-C, with all progress saved; 75 if another process is gone. After these three the same command
continues the run. A second Ctrl-C ends the run at once, without saving.
"""

import contextlib
import importlib
import importlib.util
import json
import logging
import os
import pathlib
import sys
import types
from collections.abc import Mapping
from typing import Any

import ml_collections

import vlbert_jax
from vlbert_jax.command import catch_ctrl_c, one_line, platforms_explained, report_once
from vlbert_jax.compiled import keep_programs
from vlbert_jax.memory import keep_freed_memory

# The other imports are inside the functions: JAX takes two seconds to import, and --help needs none of it.

INTERRUPTED = "stopped by Ctrl-C; the same command continues from what is saved"


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path, mode: str) -> None:
    """Train, evaluate or probe; a notebook may call it with its own config.

    Args:
      config: the config of the run, as a recipe returns it.
      workdir: folder of the checkpoints and results; it is created if it is missing.
      mode: "train", "evaluate" or "probe".

    Raises:
      ValueError, OSError, FloatingPointError: the errors that `main` reports in one line.
      Stopped: the run was asked to stop and has saved its state.
    """
    import jax

    from vlbert_jax.data.records import extractor_of
    from vlbert_jax.files import disk_full
    from vlbert_jax.tasks import get_task
    from vlbert_jax.training import hosts, sharding
    from vlbert_jax.training.evaluate import evaluate_run
    from vlbert_jax.training.logs import log_to_file, logged_output
    from vlbert_jax.training.loop import train
    from vlbert_jax.training.probe import check_probes, probe_run
    from vlbert_jax.training.trackers import check_tracker
    from vlbert_jax.weights.initialize import check_sources

    task, is_first = get_task(config.task), jax.process_index() == 0
    if mode == "probe":
        check_probes(task)
    check_sources(config, workdir, mode)
    check_tracker(config)
    workdir.mkdir(parents=True, exist_ok=True)
    mesh = sharding.make_mesh(config.mesh)

    # A run of several tasks has tables for each of them.
    blocks = [part.data for part in config.parts.values()] if "parts" in config else [config.data]
    _copy_data(config, blocks)
    for data in blocks if is_first else ():
        if data.embedded:  # the synthetic corpus is generated on first use
            with disk_full(pathlib.Path(config.data.data_dir)):
                with logged_output():
                    _draw_missing(dict(data) | dict(data_dir=config.data.data_dir, vocab=config.data.vocab))
    hosts.wait("corpus")
    for data in blocks:
        if data.features == "precomputed":  # the extractor of the features becomes part of the config of the run
            tables = [data[name] for name in ("captions", "images") if name in data]
            data.extractor = extractor_of(config.data.data_dir, *tables)
    hosts.agree(config, workdir)
    with log_to_file(workdir) if is_first else contextlib.nullcontext():  # a refused start leaves no file
        if mode == "evaluate":
            scores = evaluate_run(config, task, workdir, mesh)
            if is_first:
                with logged_output():
                    print(json.dumps(scores, indent=2))
            return
        if mode == "probe":
            lines = probe_run(config, task, workdir, mesh)
            if is_first:
                with logged_output():
                    print(*lines, sep="\n")
            return
        train(config, task, workdir, mesh)


def _copy_data(config: ml_collections.ConfigDict, blocks: list[ml_collections.ConfigDict]) -> None:
    """Replace an address in config.data.data_dir by a folder with copies of the tables and files that `blocks` name.

    Raises FileNotFoundError, StorageError, and ValueError where a synthetic corpus would be generated at the address.
    """
    from vlbert_jax.files import is_address
    from vlbert_jax.storage.data import local_data

    if not is_address(address := config.data.data_dir):
        return
    if any(data.embedded for data in blocks):
        raise ValueError(
            f"a synthetic corpus (config.data.embedded) is not generated at {address}; give a folder as "
            "--config.data.data_dir, or --config.data.embedded= and tables that are there"
        )
    texts = [text for data in [config.data, *blocks] for text in data.values() if isinstance(text, str)]
    config.data.data_dir = str(local_data(address, [text for text in texts if not is_address(text)]))


def _draw_missing(data: Mapping[str, Any]) -> None:
    """Generate the synthetic corpus of `data` unless it exists. Raises ValueError where that is impossible."""
    build = import_builder("build")
    from data_prep.manifest import SourceError

    try:
        build.draw_missing(data["embedded"], data)
    except SourceError as error:
        raise ValueError(str(error)) from error


def import_builder(name: str) -> types.ModuleType:
    """Import a module of `data_prep`, the folder next to this package.

    Raises ValueError where another folder or module of that name comes first on the import path.
    """
    expected = pathlib.Path(vlbert_jax.__file__).resolve().parents[1] / "data_prep"
    spec = importlib.util.find_spec("data_prep")
    found = pathlib.Path(spec.origin).resolve() if spec and spec.origin else None
    if found != expected / "__init__.py":
        raise ValueError(
            f"`import data_prep` finds {found or 'no package'} in place of {expected}, which vlbert_jax needs; "
            "start the command in another folder, or rename or remove the other data_prep"
        )
    return importlib.import_module(f"data_prep.{name}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status. `argv` starts with the program's name, as `sys.argv` does."""
    argv = sys.argv if argv is None else argv
    if text := _answer(argv):
        print(text)
        return 0
    return _run_command(argv)


def _answer(argv: list[str]) -> str:
    """Return the text that --help, --version or --list ask for; empty without them."""
    from vlbert_jax.training.config import COMMON_FIELDS
    from vlbert_jax.training.recipes import list_recipes

    if "--help" in argv or "-h" in argv:
        fields = "\n".join(f"  {name:24} {text}" for name, text in COMMON_FIELDS.items())
        return f"{__doc__}\nFields that are changed most often:\n{fields}\n\nRecipes:\n{list_recipes()}"
    if "--version" in argv:
        return f"vlbert_jax {vlbert_jax.__version__}"
    return list_recipes() if "--list" in argv else ""


def _run_command(argv: list[str]) -> int:
    """Run the command of `main`, whose arguments ask for more than a text."""
    from vlbert_jax.training.config import parse_command
    from vlbert_jax.training.logs import log_to_terminal
    from vlbert_jax.weights.stored_config import flat_config

    try:
        config, workdir, mode, place, print_config = parse_command(argv)
    except ValueError as error:
        if os.environ.get("VLBERT_DEBUG"):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    if print_config:
        with contextlib.suppress(BrokenPipeError):  # `| head` has read enough
            for name, value in flat_config(config.to_dict()).items():
                print(f"config.{name} = {value!r}", flush=True)
        return 0
    log_to_terminal()
    if mode != "compile":  # programs for a machine that is not there do not run
        keep_programs()
        keep_freed_memory()
    import jax

    from vlbert_jax.files import disk_full
    from vlbert_jax.storage.workdir import local_workdir
    from vlbert_jax.training import hosts
    from vlbert_jax.training.preemption import Stopped
    from vlbert_jax.weights.checksums import damage_of

    importlib.import_module("vlbert_jax.training.loop")  # all that is slow to import
    catch_ctrl_c()
    report_once()
    try:
        jax.config.update("jax_default_prng_impl", config.prng_impl)
        if mode == "compile":
            from vlbert_jax.tasks import get_task
            from vlbert_jax.training import compile_ahead  # it configures JAX for a topology that is not present

            return compile_ahead.run(config, get_task(config.task))
        hosts.join(*place)
        with platforms_explained():
            is_first = jax.process_index() == 0
        processes = dict(is_first=is_first, of_first=hosts.of_first)
        with local_workdir(workdir, mode == "train", damage_of, **processes) as folder:
            with disk_full(folder):  # rows and events, too
                run(config, folder, mode)
        return hosts.leave(0)
    except Stopped as stopped:
        logging.getLogger("vlbert_jax").warning("asked to stop: %s", stopped)
        return hosts.leave(stopped.status)
    except KeyboardInterrupt:  # before the first update or in the report; the finished parts of a corpus are kept
        return hosts.leave(130, INTERRUPTED)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("VLBERT_DEBUG"):
            raise
        return hosts.leave(2, f"error: {one_line(error)}")


def build() -> int:
    """Run `python -m data_prep.build`: the console script vlbert-build."""
    return _run_builder("build")


def extract() -> int:
    """Run `python -m data_prep.extract_regions`: the console script vlbert-extract."""
    return _run_builder("extract_regions")


def _run_builder(name: str) -> int:
    try:
        module = import_builder(name)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return module.main()


if __name__ == "__main__":
    sys.exit(main())
