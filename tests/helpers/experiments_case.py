"""Provide a small study and a program in place of its trainings."""

import sys

from benchmarks import runs as training
from data_prep import build
from experiments import run

STUDY = """
title = "A study"
about = "What it is about."
[pretrain]
recipe = "pretrain:demo"
overrides = { total_steps = 8, opening.steps = 2 }
scores = { "words" = "visual_word_accuracy" }
[tasks."VQA"]
recipe = "vqa:demo"
score = "answer_accuracy"
[settings."low"]
about = "a low rate"
seeds = 3
pretrain.learning_rate = 0.1
[settings."high"]
about = "a high rate"
seeds = 3
pretrain.learning_rate = 0.3
[settings."none"]
about = "from scratch"
seeds = 1
scratch = true
tune.data.flip_probability = 0.0
[[claims]]
text = "A high rate helps"
paper = "1 to 2"
score = "VQA"
better = "high"
worse = "low"
[small]
settings = ["low"]
seeds = 1
"""

PROBES = """
[probe]
scores = { "all words" = "words.none", "no region" = "words.all" }
[[claims]]
text = "Regions are read"
score = "all words"
better = "low"
worse = "low"
than = "no region"
"""
CURVES = """
[curves]
x = "removed"
panels = { "words" = { "0" = "words.none", "all" = "words.all" } }
"""
HEAT = """
[heat]
values = "attention.right"
chance = "attention.chance"
"""

# In place of a training: it locks its workdir, waits while the file GATE exists, and then writes a score, which is the
# learning rate of the pre-training plus a hundredth of the seed. After SIGTERM it ends like a training.
# A probe writes the score of its pre-training and other numbers.
PROGRAM = """
import fcntl, json, os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
flags = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[1:])
workdir, seed = pathlib.Path(flags["workdir"]), int(flags["config.seed"])
lock = open(workdir / ".lock", "a")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
with open(workdir / "starts", "a") as file:
    file.write("x")
(workdir / "metrics.jsonl").touch()
while (workdir.parent / "gate").exists():
    time.sleep(0.05)
if (workdir.parent / "failing").exists() and flags["config"].startswith("pretrain") and seed == 1:
    sys.exit("error: the disk is gone")
start = pathlib.Path(flags.get("config.init.checkpoint", "/nowhere")) / "score"
if flags.get("mode") == "probe":
    found = dict(step=0, split="val", words=dict(none=float(start.read_text()), all=seed / 100))
    found["attention"] = dict(chance=0.5, right=[[0.1, 0.2], [0.3, 0.4 + seed / 10]])
    (workdir / "probes").mkdir()
    (workdir / "probes/probes.json").write_text(json.dumps(found))
    sys.exit()
score = float(start.read_text()) if start.exists() else float(flags.get("config.learning_rate", 0.05)) + seed / 100
(workdir / "score").write_text(str(score))
rows = [dict(step=4, split="val", visual_word_accuracy=0.9), dict(step=8, split="train", loss=1.0)]
scores = dict(visual_word_accuracy=score, answer_accuracy=score + seed ** 2 / 100)
rows.append(dict(step=8, split="val", eval_time_s=3, **scores))
(workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
(workdir / "versions.json").write_text(json.dumps(dict(machine="2 cores", revision="0123456789abcdef")))
"""


def replace_trainings() -> None:
    """Replace trainings by PROGRAM, and let no corpus be made."""

    def command_of(workdir, config, *flags):
        return [sys.executable, "-c", PROGRAM, f"--config={config}", f"--workdir={workdir}", *flags]

    training.command_of, build.draw_missing = command_of, lambda *_: None


if __name__ == "__main__":  # as `python -m experiments.run`
    replace_trainings()
    sys.exit(run.main())
