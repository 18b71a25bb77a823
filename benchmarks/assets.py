"""Write the models that ship with the package, their cards, and the example scenes; `make assets` calls it.

    python benchmarks/assets.py [NAME ...] [--data_dir=data] [--workdirs=workdirs]

NAME is a model of MODELS below, by default each of them; its workdir is the finished run of a demo variant. For each
the script writes vlbert_jax/assets/NAME: the weights in float16 (with the config as metadata), the vocabularies, and
README.md, a model card. The card has two sets of scores: those of the run's validation split (metrics.jsonl), and those
of the shipped weights on small corpora of another seed, which tests/prediction/shipped_test.py computes again. The
script also writes examples/scene.jpg and its boxes, and the scenes of examples/gallery with the boxes of each.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ml_collections  # noqa: E402
import numpy as np  # noqa: E402
from huggingface_hub import EvalResult, ModelCardData  # noqa: E402

from configs import caption, classify, pretrain, refcoco, retrieval, vqa  # noqa: E402
from data_prep.build import build_scene_kinds, build_scene_tasks, build_scenes  # noqa: E402
from data_prep.scenes.corpus import detect  # noqa: E402
from data_prep.scenes.crowded import draw_crowded  # noqa: E402
from vlbert_jax import main as command  # noqa: E402
from vlbert_jax.files import atomic_write, required_path  # noqa: E402
from vlbert_jax.tasks import TASKS  # noqa: E402
from vlbert_jax.training.metrics import read_rows  # noqa: E402
from vlbert_jax.training.provenance import copy_vocabularies  # noqa: E402
from vlbert_jax.weights.conversion import prepare_conversion, write_conversion  # noqa: E402
from vlbert_jax.weights.shipped import ASSETS  # noqa: E402
from vlbert_jax.weights.stored_config import own_vocabularies  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that ships with the package."""

    recipe: Callable[[], ml_collections.ConfigDict]
    config: str  # value of --config of the run
    workdir: str  # of the run, in --workdirs
    does: str  # what the model does, as a predicate
    ask: str  # arguments of the prediction command for its example
    scores: tuple[str, ...]  # on the card; the first is the one to look at
    baseline: str = ""  # sentence about the scores of guesses
    held_out: dict[str, int] = dataclasses.field(default_factory=dict)  # fields of config.data for the held-out scores


SCENE = "--image=examples/scene.jpg --boxes=examples/scene.json \\\n  "
PAIR = "--image=examples/scene.jpg --image2=examples/gallery/5.jpg \\\n  "
PAIR += "--boxes examples/scene.json examples/gallery_boxes/5.json "
GALLERY = "--gallery=examples/gallery --boxes=examples/gallery_boxes \\\n  "
MODELS = {
    "demo-pretrain": Model(
        pretrain.demo, "configs/pretrain.py", "demo", "fills masked words of a caption from the image",
        SCENE + '--caption "the purple [MASK]"',
        ("visual_word_accuracy", "visual_word_accuracy_blind", "mlm_caption_accuracy", "mrc_accuracy"),
    ),
    "demo-vqa": Model(
        vqa.demo, "configs/vqa.py", "vqa", "answers questions about an image",
        SCENE + '--question "what color is the large fish?"', ("answer_accuracy",),
    ),
    "demo-refcoco": Model(
        refcoco.demo, "configs/refcoco.py", "refcoco", "finds the region that an expression describes",
        SCENE + '--expression "the large fish"',
        ("grounding_accuracy", "grounding_accuracy_blind", "grounding_accuracy_chance"),
    ),
    "demo-classify": Model(
        classify.demo, "configs/classify.py", "classify",
        "says whether a statement follows from an image, contradicts it, or neither",
        SCENE + '--text "The purple thing is a fish."', ("classify_accuracy",),
        "Chance, and the best guess without the image, is a third.",
    ),
    "demo-nlvr2": Model(
        classify.demo_pairs, "configs/classify.py:demo_pairs", "classify_demo_pairs",
        "says whether a statement about two images is true",
        PAIR + '--text "Only the left image shows a fish."', ("classify_accuracy",),
        "Chance, and the best guess without the images, is a half.",
    ),
    "demo-retrieval": Model(
        retrieval.demo, "configs/retrieval.py", "retrieval", "orders images by how well a text fits them",
        GALLERY + '--text "a blue star above an orange moon"', ("mean_recall", "image_recall_1", "text_recall_1"),
        "Each image has five texts. Validation ranks 100 images, where random scores reach a mean recall of 0.05; the\n"
        "held-out scores rank the first 30, which is easier.", dict(eval_candidates=30),
    ),
    "demo-caption": Model(
        caption.demo, "configs/caption.py", "caption", "writes captions of an image",
        "--image=examples/gallery/7.jpg --boxes=examples/gallery_boxes/7.json \\\n  --describe",
        ("caption_accuracy",),
        "The score is that of masked words, of which each is predicted from the image and the words before it.",
    ),
}  # fmt: skip
SAMPLE = dict(seed=1, num_val=100)  # of the held-out corpora; no run of the demo has this seed
EXAMPLE = (1, 10, 1216)  # seed of the example scene, chosen because the answers about it are right
GALLERY_SEED, GALLERY_SIZE = (1, 30), 8
EXAMPLE_TEXTS = {  # for each kind of model, for the page of the app; each was tried
    "answer": ["what color is the large fish?", "what is the purple thing?", "how many things are there?"],
    "region": ["the large fish", "the car", "the purple thing"],
    "pretrain": ["the purple [MASK]", "a [MASK] car", "three things on the [MASK]"],
    "classify": ["The purple thing is a fish.", "The purple thing is a ball.", "The car is red."],
    "classify_pair": [
        "Only the left image shows a fish.", "Both images show a car.", "At least one image shows a house.",
    ],
    "match": ["a blue star above an orange moon", "a black house", "a purple fish and an orange fish"],
}  # fmt: skip
CARD = """\
# {name}

A small VL-BERT that {does}.
It ships with vlbert_jax, so that the first command works without training:

```
python -m vlbert_jax.predict --checkpoint={name} {ask}
```

The encoder has {layers} layers of width {width}, the region head is a small ResNet, and the vocabulary has {words}
tokens: {parameters:,} parameters in float16. Computation is in float32.

## Training

The weights come from this command at commit `{commit}`, {steps:,} updates of {batch_size} sequences:

```
{training}
```

{start}The command generates its training data, {scenes} synthetic scenes.
A scene shows up to four things, such as fish, balls and houses, in eight colors and five places. `make assets` makes
this folder again.

## Scores

{table}

The first column is the validation split of the run (seed 0), at the end of training. The second is a corpus of
seed {seed} ({num_val} scenes), scored with the weights in this folder.{baseline}

## Limits

This is a demonstration. The model has seen nothing but synthetic scenes of 96 to 144 pixels, with ten kinds of things
and a few dozen words. Its answers about photographs, people and other words are guesses. It expects a box around each
thing: with the grid that replaces missing boxes it is much worse. The answers about the scenes in `examples` are right
because these scenes or the texts about them were chosen. Do not use the model for decisions. For photographs, use
released weights or train the recipes of the paper.
"""


def write_examples() -> None:
    """Write the example scene with texts about it, and the scenes of a gallery, each with boxes of a detector."""
    folder = ROOT / "examples"
    _write_scene(EXAMPLE, folder / "scene.jpg", folder / "scene.json", texts=EXAMPLE_TEXTS)
    for number in range(1, GALLERY_SIZE + 1):
        paths = folder / f"gallery/{number}.jpg", folder / f"gallery_boxes/{number}.json"
        _write_scene((*GALLERY_SEED, number), *paths)


def _write_scene(seed: tuple[int, ...], image: Path, boxes: Path, **fields) -> None:
    """Write a scene and the boxes that the simulated detector finds in it."""
    rng = np.random.default_rng(seed)
    scene, _ = draw_crowded(rng)
    for path in (image, boxes):
        path.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(scene.jpeg)
    found = [[round(float(side), 1) for side in box] for box in detect(scene, rng)[0]]
    boxes.write_text(json.dumps(dict(boxes=found) | fields) + "\n")


def export(task: str, workdir: Path, data_dir: str, target: Path) -> ml_collections.ConfigDict:
    """Write weights and vocabularies of a run to `target`; return the config of the run."""
    config = ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text()))
    config.data.data_dir = data_dir
    config.data.update(own_vocabularies(workdir))
    write_conversion(prepare_conversion(workdir, task), target / "model.safetensors", "safetensors", "float16")
    copy_vocabularies(config, target)
    return config


def build_held_out(folder: Path) -> None:
    """Build the held-out corpora in `folder`; their other splits are as small as they can be."""
    build_scenes(folder, **SAMPLE, num_train=1, num_train_stories=1, num_val_stories=50)
    build_scene_tasks(folder, **SAMPLE, num_train=1, num_test=1)
    build_scene_kinds(folder, **SAMPLE, num_train=8, num_test=8, tasks=("nlvr2", "snli_ve", "retrieval"))


def held_out_scores(name: str, folder: Path) -> dict[str, float]:
    """Return the scores of a shipped model on the validation split of the held-out corpora in `folder`."""
    model = MODELS[name]
    config = model.recipe()
    config.data.update(dict(data_dir=str(folder), embedded="", **model.held_out))
    config.init.checkpoint = name
    command.run(config, folder / f"run_{name}", "evaluate")
    return json.loads((folder / f"run_{name}/scores.json").read_text())


def write_card(
    target: Path, workdir: Path, config: ml_collections.ConfigDict, held_out: dict[str, float]
) -> None:
    """Write the model card in the form of Hugging Face."""
    model, kind = MODELS[target.name], TASKS[config.task].pipeline
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "val"]
    reached, results = rows[-1], []
    for seed, scores in ((0, reached), (SAMPLE["seed"], held_out)):
        for metric in model.scores:
            about = dict(dataset_type="synthetic-scenes", dataset_name="synthetic scenes", dataset_split="val")
            about |= dict(task_type=kind, dataset_config=f"seed-{seed}", metric_type=metric)
            results.append(EvalResult(metric_value=round(float(scores[metric]), 4), **about))
    data = ModelCardData(
        language="en", license="mit", library_name="vlbert_jax", pipeline_tag=kind, model_name=target.name,
        tags=["vl-bert", "jax", "demonstration"], datasets=["synthetic-scenes"], eval_results=results,
    )  # fmt: skip
    table = ["| score | validation | held out |", "|---|---|---|"]
    table += [f"| `{metric}` | {reached[metric]:.3f} | {held_out[metric]:.3f} |" for metric in model.scores]
    training, start = "make demo", ""
    if config.init.checkpoint:
        start = "It starts from the result of `make demo`. "
        training = f"python -m vlbert_jax.main --config={model.config} --config.init.checkpoint=workdirs/demo"
    encoder = config.model.encoder
    sizes = [array.size for array in prepare_conversion(target).tensors.values()]
    text = CARD.format(
        name=target.name, does=model.does, ask=model.ask, layers=encoder.num_layers, width=encoder.hidden_size,
        words=encoder.vocab_size, parameters=sum(sizes), steps=config.total_steps, batch_size=config.batch_size,
        commit=json.loads((workdir / "versions.json").read_text())["revision"], training=training, start=start,
        scenes="3,000" if config.init.checkpoint else "12,000", table="\n".join(table),
        baseline=f"\n{model.baseline}" if model.baseline else "", **SAMPLE,
    )  # fmt: skip
    (target / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(MODELS)}")
    parser.add_argument("--data_dir", type=required_path, default="data", help="data of the runs, for the vocabularies")
    parser.add_argument("--workdirs", type=required_path, default="workdirs", help="folder of the runs")
    args = parser.parse_args()
    if unknown := set(args.names) - set(MODELS):
        parser.error(f"there is no model {', '.join(sorted(unknown))}; the models are {', '.join(MODELS)}")
    write_examples()
    with tempfile.TemporaryDirectory() as held_out:
        build_held_out(Path(held_out))
        for name in args.names or MODELS:
            workdir, target = Path(args.workdirs, MODELS[name].workdir), ASSETS / name
            with atomic_write(target) as folder:
                folder.mkdir()
                config = export(MODELS[name].recipe().task, workdir, args.data_dir, folder)
            write_card(target, workdir, config, held_out_scores(name, Path(held_out)))
            print(f"written: {target}")


if __name__ == "__main__":
    main()
