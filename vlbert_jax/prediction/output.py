"""What the prediction command prints, draws and writes."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from vlbert_jax.data.image_files import read_image
from vlbert_jax.detector.detect import load_detector
from vlbert_jax.detector.options import Settings
from vlbert_jax.prediction.predictor import Picture, Predictor, load
from vlbert_jax.prediction.regions import Found, find_regions, given_regions
from vlbert_jax.visualization.attention import write_attention
from vlbert_jax.visualization.drawing import draw_regions, save_drawing


def ask_all(model: Predictor, picture: Picture, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every text of the command, of one picture: plain values as --json prints them."""
    answers = []
    for text in args.question:
        if args.choices:
            best = model.choose(picture, text, args.choices)
            ranked = sorted(zip(args.choices, best, strict=True), key=lambda pair: -pair[1])
        else:
            ranked = model.answer(picture, text)
        answers.append(dict(question=text, answers=[_guess(*pair) for pair in ranked]))
    for text in args.expression:
        places = [dict(box=[round(v, 1) for v in p.box], region=p.region, probability=round(p.probability, 4))
                  for p in model.ground(picture, text)]  # fmt: skip
        answers.append(dict(expression=text, places=places))
    for text in args.caption:
        filled = [{name: [_guess(*word) for word in words] for name, words in mask._asdict().items()}
                  for mask in model.fill(picture, text)]  # fmt: skip
        answers.append(dict(caption=text, masks=filled))
    return answers


def _guess(text: str, probability: float) -> dict[str, Any]:
    return dict(text=text, probability=round(probability, 4))


def described(found: Found) -> dict[str, Any]:
    """The regions, as --json prints them."""
    rows = []
    for i, box in enumerate(found.boxes.tolist()):
        row = dict(region=i + 1, box=[round(v, 1) for v in box])
        row |= dict(label=found.labels[i]) if found.labels[i] else {}
        row |= dict(attribute=found.attributes[i]) if found.attributes and found.attributes[i] else {}
        row |= dict(score=round(found.scores[i], 4)) if found.scores else {}
        rows.append(row)
    return dict(source=found.source, regions=rows)


def answer_lines(answer: dict[str, Any]) -> list[str]:
    """What was asked and answered, for people."""
    if "answers" in answer:
        return [answer["question"], "   " + _ranked(answer["answers"])]
    if "places" in answer:
        best = answer["places"][0]
        where = "the whole image" if best["region"] == 0 else f"region {best['region']}, {best['box']}"
        return [answer["expression"], f"   {where}  {best['probability']:.0%}"]
    kinds = {"words": "with the image", "blind": "without it"}
    found = [f"   {kind}:  {_ranked(mask[name])}" for mask in answer["masks"] for name, kind in kinds.items()]
    return [answer["caption"], *found]


def _ranked(guesses: list[dict[str, Any]]) -> str:
    return "   ".join(f"{guess['text']} {guess['probability']:.0%}" for guess in guesses)


def box_marks(answers: list[dict[str, Any]]) -> dict[int, str]:
    """Which boxes to draw strongly, and what to write on them: of each expression the best."""
    written = {}
    for answer in answers:
        if "places" in answer and (region := answer["places"][0]["region"]):
            text = f"{answer['expression']}  {answer['places'][0]['probability']:.0%}"
            written.setdefault(region - 1, []).append(text)
    return {box: ", ".join(texts) for box, texts in written.items()}


def numbered(path: Path, number: int, count: int) -> Path:
    return path if count == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def predict_images(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Answers, picture by picture; prints them unless --json is asked for."""
    model, finder = None, None
    for number, image in enumerate(args.image):  # what cannot be read is told before anything takes its time
        _, pixels = read_image(image)
        if args.boxes:
            given_regions(args.boxes[number], pixels.shape[1::-1])
    if args.detector:
        settings = Settings(proposals_after=args.proposals)
        finder = load_detector(args.detector, settings)
    if args.checkpoint:
        model = load(
            args.checkpoint, detector=finder, vocab=args.vocab, answers=args.answers, data_dir=args.data_dir
        )
        question = "choose" if args.choices else "answer"
        for texts, method in ((args.question, question), (args.expression, "ground"), (args.caption, "fill")):
            if texts:
                model.require(method)
    results = []
    for number, image in enumerate(args.image, 1):
        boxes = args.boxes[number - 1] if args.boxes else None
        if model:
            picture = model.look(image, boxes)
            pixels, found, answers = picture.pixels, picture.regions, ask_all(model, picture, args)
        else:
            _, pixels = read_image(image)
            found, answers = find_regions(pixels, boxes, finder), []
        about = dict(image=image, width=pixels.shape[1], height=pixels.shape[0], **described(found), asked=answers)
        if not args.json:
            show(about)
        if args.out:
            path = numbered(args.out, number, len(args.image))
            names = [f"{i} {found.name(i)}" if label else str(i) for i, label in enumerate(found.labels, 1)]
            below = [line for answer in answers for line in answer_lines(answer)]
            save_drawing(draw_regions(pixels, found.boxes, names, box_marks(answers), below), path)
            about["picture"] = str(path)
        for place, answer in enumerate(answers if args.attention else ()):
            path = numbered(args.attention, len(answers) * (number - 1) + place + 1, len(answers) * len(args.image))
            text, *below = answer_lines(answer)
            choice = answer["answers"][0]["text"] if args.choices else ""
            seen = model.attention(picture, text, choice=choice)
            title, below = f"{text} ({Path(image).name})", "\n".join(line.strip() for line in below)
            write_attention(path, pixels, found.boxes, *seen, title, below)
            answer["attention"] = str(path)
        results.append(about)
    return results


def show(about: dict[str, Any]) -> None:
    count = len(about["regions"])
    told = [f"{about['image']}: {about['width']} x {about['height']}; {count} regions from {about['source']}"]
    for answer in about["asked"]:
        told += [f"  {line}" for line in answer_lines(answer)]
    for row in () if about["asked"] else about["regions"]:
        what = f"{row.get('attribute', '')} {row.get('label', '')}".strip()
        score = f"{row['score']:.2f}" if "score" in row else ""
        told.append(f"  {row['region']:3}  {what:30} {score:5} {row['box']}")
    say("\n".join(told))


def say(text: str) -> None:
    """Prints at once, so that a full disk is told here."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python would still write at the end
        if not isinstance(error, BrokenPipeError):  # else who reads has seen enough
            raise OSError(error.errno, error.strerror, "standard output") from error
