"""Trains or evaluates a recipe, or tells what training it would take.

python -m vlbert_jax.main --config=configs/{pretrain,vqa,vcr,refcoco}.py[:VARIANT] [--workdir=DIR]
    [--mode=train|evaluate|compile] [--config.FIELD=VALUE ...]
    [--coordinator=HOST:PORT --num_processes=N --process_id=I]

DIR is workdirs/CONFIG_VARIANT if it is not given. The same command continues an interrupted run. Evaluation scores the
run, or --config.init.checkpoint, on config.data.eval_split; a task's predictions go to DIR/predictions. Compiling needs
neither data nor the machine: --config.topology=v5e:16x16 prints memory, collectives and predicted time. Several
processes find each other under srun, mpirun and on TPU hosts; elsewhere each gets the last three flags (launch/).
Exit status: 0 done; 2 an error that one line explains (VLBERT_DEBUG=1 shows the traceback); 143 stopped by SIGTERM,
everything saved; 75 another host is gone. After the last two the same command goes on.
"""

import json
import logging
import os
import pathlib
import sys
import types

import jax
import ml_collections

from data_prep import build
from data_prep.builder import SourceError
from vlbert_jax.data.records import extractor_of
from vlbert_jax.files import disk_full
from vlbert_jax.tasks import TASKS
from vlbert_jax.training import hosts, sharding
from vlbert_jax.training.config import parse_command
from vlbert_jax.training.evaluate import evaluate_run, write_run_report
from vlbert_jax.training.loop import train
from vlbert_jax.training.preemption import Stopped
from vlbert_jax.weights.initialize import check_sources


def task_of(config: ml_collections.ConfigDict) -> types.ModuleType:
    if config.task not in TASKS:
        raise ValueError(f"unknown task {config.task!r}; there are: {', '.join(TASKS)}")
    return TASKS[config.task]


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path, mode: str):
    """Trains or evaluates. Importable: a notebook calls it with a config of its own, and meets what `main` catches."""
    task, chief = task_of(config), jax.process_index() == 0
    check_sources(config, workdir, mode)
    workdir.mkdir(parents=True, exist_ok=True)
    mesh = sharding.make_mesh(config.mesh)

    if config.data.embedded and chief:  # the drawn corpus is made on first use
        with disk_full(pathlib.Path(config.data.data_dir)):
            build.draw_missing(config.data.embedded, config.data)
    hosts.wait("corpus")
    if config.data.features == "precomputed":  # their extractor is part of the run from now on
        tables = [config.data[name] for name in ("captions", "images") if name in config.data]
        config.data.extractor = extractor_of(config.data.data_dir, *tables)
    hosts.agree(config, workdir)
    if mode == "evaluate":
        scores = evaluate_run(config, task, workdir, mesh)
        if chief:
            print(json.dumps(scores, indent=2))
        return
    graphdef, state = train(config, task, workdir, mesh)
    if config.report:
        write_run_report(config, task, workdir, graphdef, state)


def main(argv: list[str]) -> int:
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("vlbert_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells all; what matters it raises
    if "--help" in argv:
        print(__doc__)
        return 0
    try:
        config, workdir, mode, place = parse_command(argv)
        jax.config.update("jax_default_prng_impl", config.prng_impl)
        if mode == "compile":
            from vlbert_jax.training import compile_ahead  # settings of its own, for machines that are not there

            return compile_ahead.run(config, task_of(config))
        hosts.join(*place)
        with disk_full(workdir):  # whatever is being written: rows, events, the report
            run(config, workdir, mode)
            return hosts.leave(0)
    except Stopped as stopped:
        logging.getLogger("vlbert_jax").warning("asked to stop: %s", stopped)
        return hosts.leave(143)
    except (ValueError, OSError, FloatingPointError, SourceError) as error:
        if os.environ.get("VLBERT_DEBUG"):
            raise
        return hosts.leave(2, f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
