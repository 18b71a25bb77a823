"""What the prediction command prints, draws and writes."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from vlbert_jax.data.image_files import read_image
from vlbert_jax.detector.detect import load_detector
from vlbert_jax.detector.options import Settings
from vlbert_jax.detector.regions import Regions
from vlbert_jax.prediction.predictor import Picture, Predictor, load
from vlbert_jax.prediction.regions import find_regions, given_regions
from vlbert_jax.tasks import TASKS, all_tasks
from vlbert_jax.visualization.attention import write_attention
from vlbert_jax.visualization.drawing import draw_regions, save_drawing


def ask_all(model: Predictor, picture: Picture, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the answers to every text of the command about one image, as plain values for JSON."""
    asked = TASKS[model.task.name].option.removeprefix("--")
    answers = []
    for text in getattr(args, asked):
        answers.append({asked: text} | model.task.describe(model.ask(picture, text, args.choices)))
    return answers


def described(found: Regions) -> dict[str, Any]:
    """The regions, as --json prints them."""
    rows = []
    for i, box in enumerate(found.boxes.tolist()):
        row = dict(region=i + 1, box=[round(v, 1) for v in box])
        row |= dict(label=found.labels[i]) if found.labels[i] else {}
        row |= dict(attribute=found.attributes[i]) if found.attributes and found.attributes[i] else {}
        row |= dict(score=round(found.scores[i], 4)) if found.scores else {}
        rows.append(row)
    return dict(source=found.source, regions=rows)


def answer_lines(model: Predictor, answer: dict[str, Any]) -> list[str]:
    """Return the text and what was answered, as lines to print."""
    text = answer[TASKS[model.task.name].option.removeprefix("--")]
    return [text, *(f"   {line}" for line in model.task.lines(answer))]


def box_marks(model: Predictor, answers: list[dict[str, Any]]) -> dict[int, str]:
    """Return which boxes to draw strongly, and the labels to write on them."""
    written: dict[int, list[str]] = {}
    for answer in answers:
        for box, label in model.task.marks(answer_lines(model, answer)[0], answer).items():
            written.setdefault(box, []).append(label)
    return {box: ", ".join(labels) for box, labels in written.items()}


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
        check_texts(model, args)
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
            show(model, about)
        if args.out:
            path = numbered(args.out, number, len(args.image))
            names = [f"{i} {found.name(i)}" if label else str(i) for i, label in enumerate(found.labels, 1)]
            below = [line for answer in answers for line in answer_lines(model, answer)]
            marks = box_marks(model, answers) if model else {}
            save_drawing(draw_regions(pixels, found.boxes, names, marks, below), path)
            about["picture"] = str(path)
        for place, answer in enumerate(answers if args.attention else ()):
            path = numbered(args.attention, len(answers) * (number - 1) + place + 1, len(answers) * len(args.image))
            text, *below = answer_lines(model, answer)
            choice = answer["answers"][0]["text"] if args.choices else ""
            seen = model.attention(picture, text, choice=choice)
            title, below = f"{text} ({Path(image).name})", "\n".join(line.strip() for line in below)
            write_attention(path, pixels, found.boxes, *seen, title, below)
            answer["attention"] = str(path)
        results.append(about)
    return results


def check_texts(model: Predictor, args: argparse.Namespace) -> None:
    """Raise ValueError where a text of the command is for a model of another task."""
    for task in all_tasks():
        registered = TASKS[task.name]
        given = getattr(args, registered.option.removeprefix("--"))
        if given and registered.takes_choices == bool(args.choices):
            model.require(task.method)


def show(model: Predictor | None, about: dict[str, Any]) -> None:
    count = len(about["regions"])
    told = [f"{about['image']}: {about['width']} x {about['height']}; {count} regions from {about['source']}"]
    for answer in about["asked"]:
        told += [f"  {line}" for line in answer_lines(model, answer)]
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
