"""Measure the accuracy of `predict` on synthetic scenes that training never saw, with the demos' checkpoints.

    make demo, then fine-tune configs/vqa.py and configs/refcoco.py from it (docs/fine_tuning.md), then
    python benchmarks/held_out_scenes.py [--scenes=50] [--data_dir=data] [--pretrain=workdirs/demo]
        [--vqa=workdirs/vqa] [--refcoco=workdirs/refcoco] [--vocab=...]

The script takes scenes of each validation split with one text each: a question (scored by the official accuracy), an
expression (right if the boxes share at least half of their union), and a caption with one masked color or category.
Regions are those of the synthetic detector, as in a file given with --boxes. The output is a Markdown table.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

import vlbert_jax  # noqa: E402
from vlbert_jax.data.image_files import open_image  # noqa: E402
from vlbert_jax.data.records import Records, open_split  # noqa: E402
from vlbert_jax.data.tables import Split  # noqa: E402
from vlbert_jax.files import required_path, user_path  # noqa: E402
from vlbert_jax.geometry import box_iou  # noqa: E402
from vlbert_jax.tasks.answer import accuracy  # noqa: E402
from vlbert_jax.tasks.region.examples import POSITIVE  # noqa: E402


def texts_of(predictor, scenes: int) -> list[dict]:
    """Return records of the validation split, each with its image: the first text of every scene."""
    split, found = Split(predictor.config, "val"), {}
    for number in range(len(split)):
        record = split.texts[number]
        found.setdefault(int(record["image_number"]), number)
    numbers = sorted(found.values())
    return [split[number] for number in numbers[:: max(1, len(numbers) // scenes)][:scenes]]


def questions(predictor, scenes: int) -> list[float]:
    scores = []
    for record in texts_of(predictor, scenes):
        image = predictor.look(open_image(record["image"]), record["boxes"])
        best = predictor.answer(image, record["question"])[0].text
        scores.append(accuracy.answer_accuracy(best, record["answers"]))
    return scores


def expressions(predictor, scenes: int) -> list[float]:
    scores = []
    for record in texts_of(predictor, scenes):
        image = predictor.look(open_image(record["image"]), record["proposals"])
        best = predictor.ground(image, record["expression"])[0].box
        scores.append(box_iou(np.array([best]), np.asarray(record["box"]))[0] >= POSITIVE)
    return scores


def masked_words(predictor, scenes: int, blind: bool) -> list[float]:
    d, scores = predictor.config.data, []
    records = Records(
        *(open_split(d.data_dir, d.captions, f"val_{o}", optional=True) for o in ("landscape", "portrait"))
    )
    for number in range(0, len(records), max(1, len(records) // scenes)):
        record = records[number]
        words = [word.lower() for word in record["caption"]]
        places = [i for i, word in enumerate(words) if word in d.visual_words]
        if not places or len(scores) == scenes:
            continue
        place = places[number % len(places)]
        text = " ".join([*words[:place], "[MASK]", *words[place + 1 :]])
        (filled,) = predictor.fill(open_image(record["image"]), text, record["boxes"])
        scores.append((filled.blind if blind else filled.words)[0].text == words[place])
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--data_dir", type=user_path, default="")
    about = "data_dir of the pre-trained model, if it differs"
    parser.add_argument("--caption_data_dir", type=user_path, default="", help=about)
    about = "vocabulary of the pre-trained model, if it has moved"
    parser.add_argument("--vocab", type=user_path, default="", help=about)
    for task, workdir in dict(pretrain="demo", vqa="vqa", refcoco="refcoco").items():
        parser.add_argument(f"--{task}", type=required_path, default=f"workdirs/{workdir}")
    args = parser.parse_args()
    captions = dict(data_dir=args.caption_data_dir or args.data_dir, vocab=args.vocab)
    model = vlbert_jax.load(args.pretrain, **captions)
    rows = {
        "masked word": masked_words(model, args.scenes, blind=False),
        "masked word, without the image": masked_words(model, args.scenes, blind=True),
        "question": questions(vlbert_jax.load(args.vqa, data_dir=args.data_dir), args.scenes),
        "expression": expressions(vlbert_jax.load(args.refcoco, data_dir=args.data_dir), args.scenes),
    }
    print("| question | scenes | right |\n|---|---|---|")
    for name, scores in rows.items():
        print(f"| {name} | {len(scores)} | {sum(scores):.1f} = {np.mean(scores):.0%} |")


if __name__ == "__main__":
    main()
