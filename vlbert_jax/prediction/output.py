"""What the prediction command prints, draws and writes."""

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from vlbert_jax.data.image_files import read_image
from vlbert_jax.detector.detect import load_detector
from vlbert_jax.detector.options import RULES
from vlbert_jax.detector.regions import Regions
from vlbert_jax.prediction.asked import Asked, describe_answers, draw_asked
from vlbert_jax.prediction.expected import origin_of_features
from vlbert_jax.prediction.predictor import Picture, Predictor, load
from vlbert_jax.prediction.regions import find_regions, given_regions
from vlbert_jax.tasks import TASKS, Registered
from vlbert_jax.visualization.attention import write_attention
from vlbert_jax.visualization.drawing import save_drawing
from vlbert_jax.weights.shipped import notice_of


def predict_images(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the answers for every image as plain values; print them as well unless --json is given.

    Raises:
        ValueError, OSError: An image, a file of boxes, weights or a text cannot be used.
    """
    check_images(args)
    model, finder = load_models(args)
    notice = notice_of(args.checkpoint) if args.checkpoint else ""
    if notice and not args.json:
        say(notice)
    results = []
    second = look_at_second(model, args) if model else []
    for number, image in enumerate(args.image):
        boxes = args.boxes[number] if args.boxes else None
        if model:
            picture = model.look(image, boxes)
            with_image = second[number % len(second)] if second else None
            pixels, found, asked = picture.pixels, picture.regions, ask_all(model, picture, args, with_image)
        else:
            picture, asked = None, []
            _, pixels = read_image(image, addresses=True)
            found = find_regions(pixels, boxes, finder)
        about = dict(image=image, width=pixels.shape[1], height=pixels.shape[0], **described(found))
        about |= dict(notice=notice) if notice else {}
        if model and picture and (origin := origin_of_features(model.config, found)):
            about["features"] = origin
        about["asked"] = [one.fields for one in asked]
        if not args.json:
            show(about, asked)
        if args.out:
            about["picture"] = str(numbered(args.out, number, len(args.image)))
            save_drawing(draw_asked(pixels, found, asked), Path(about["picture"]))
        if model and picture and args.attention:
            write_attentions(model, picture, asked, args, number)
        results.append(about)
    return results


def check_images(args: argparse.Namespace) -> None:
    """Read every image and every file of boxes once, so that errors are reported before anything slow starts."""
    for number, image in enumerate(args.image + args.image2):
        _, pixels = read_image(image, addresses=True)
        if args.boxes:
            given_regions(args.boxes[number], pixels.shape[1::-1])


def load_models(args: argparse.Namespace):
    """Return the model and the detector that the command names; None where it names none."""
    model, finder = None, None
    if args.detector:
        finder = load_detector(args.detector, RULES[args.rules](proposals_after=args.proposals))
    if args.checkpoint:
        asked = [name for name, task in TASKS.items() if getattr(args, task.option.removeprefix("--"), None)]
        searching = [name for name, task in TASKS.items() if task.searches]
        task = next(iter(searching if args.gallery or args.texts else asked), "")
        options = dict(vocab=args.vocab, answers=args.answers, data_dir=args.data_dir, task=task, head=args.head)
        model = load(args.checkpoint, detector=finder, addresses=True, **options)
        check_texts(model, args)
    return model, finder


def check_texts(model: Predictor, args: argparse.Namespace) -> None:
    """Raise ValueError where a text of the command requires a model of another task."""
    own = TASKS[model.task.name]
    if args.image2 and not (args.text or own.text_optional):
        raise ValueError(f"--image2 goes with --text, but {model.path} is a model for {own.title}.")
    for wanted in TASKS.values():
        given = getattr(args, wanted.option.removeprefix("--"), None)
        if given and wanted.takes_choices == bool(args.choices) and options_of(wanted) != options_of(own):
            raise ValueError(
                f"{model.path} is a model for {own.title}: it takes {options_of(own)}. {options_of(wanted)} needs a "
                f"model for {wanted.title}."
            )


def options_of(task: Registered) -> str:
    """Return the options of the command that a task takes."""
    return task.option + (" with --choices" if task.takes_choices else "")


def look_at_second(model: Predictor, args: argparse.Namespace) -> list[Picture]:
    """Return the second images of the command; their files of boxes follow those of the first images."""
    boxes = args.boxes[len(args.image) :] or [None] * len(args.image2)
    return [model.look(image, of_image) for image, of_image in zip(args.image2, boxes, strict=True)]


def ask_all(
    model: Predictor, picture: Picture, args: argparse.Namespace, second: Picture | None = None
) -> list[Asked]:
    """Return the answers to every text of the command about one image, or about it and a second one."""
    own, found = TASKS[model.task.name], []
    texts = getattr(args, own.option.removeprefix("--")) or ([""] if own.text_optional else [])
    for number, text in enumerate(texts):
        if args.phrases:
            for phrase, places in zip(args.phrases, model.ground(picture, text, phrases=args.phrases), strict=True):
                asked = describe_answers(model.task, phrase, places)
                found.append(dataclasses.replace(asked, fields=asked.fields | dict(expression=text, phrase=phrase)))
            continue
        text2 = args.text2[number % len(args.text2)] if args.text2 else ""
        asked = describe_answers(model.task, text, model.ask(picture, text, args.choices, None, text2, second))
        more = dict(text2=text2) if text2 else {}
        more |= dict(image2=second.name) if second else {}
        found.append(dataclasses.replace(asked, fields=asked.fields | more))
    return found


def described(found: Regions) -> dict[str, Any]:
    """Return the regions as plain values for JSON."""
    rows = []
    for i, box in enumerate(found.boxes.tolist()):
        row = dict(region=i + 1, box=[round(v, 1) for v in box])
        row |= dict(label=found.labels[i]) if found.labels[i] else {}
        row |= dict(attribute=found.attributes[i]) if found.attributes and found.attributes[i] else {}
        row |= dict(score=round(found.scores[i], 4)) if found.scores else {}
        rows.append(row)
    return dict(source=found.source, regions=rows)


def numbered(path: Path, number: int, count: int) -> Path:
    """Return `path` with a number from 1 in its name, where there are several files."""
    return path if count == 1 else path.with_name(f"{path.stem}-{number + 1}{path.suffix}")


def write_attentions(
    model: Predictor, picture: Picture, asked: list[Asked], args: argparse.Namespace, number: int
) -> None:
    """Write a page of attention for every text about image `number`, and its path into the text's fields."""
    for place, one in enumerate(asked):
        path = numbered(args.attention, len(asked) * number + place, len(asked) * len(args.image))
        choice = one.fields["answers"][0]["text"] if args.choices else ""
        seen = model.attention(picture, one.text, choice=choice)
        title = f"{one.text} ({Path(args.image[number]).name})"
        elements = (seen.tokens, seen.regions, seen.probabilities)
        shown = (title, "\n".join(one.lines), seen.layers)
        write_attention(path, picture.pixels, picture.regions.boxes, *elements, *shown)
        one.fields["attention"] = str(path)


def show(about: dict[str, Any], asked: list[Asked]) -> None:
    """Print the image, and the answers, or without a text the regions."""
    count = len(about["regions"])
    lines = [f"{about['image']}: {about['width']} x {about['height']}; {count} regions from {about['source']}"]
    lines += [about["features"]] if "features" in about else []
    for one in asked:
        lines += [f"  {one.text}"] if one.text else []
        lines += [f"     {line}" for line in one.lines]
    for row in () if asked else about["regions"]:
        what = f"{row.get('attribute', '')} {row.get('label', '')}".strip()
        score = f"{row['score']:.2f}" if "score" in row else ""
        lines.append(f"  {row['region']:3}  {what:30} {score:5} {row['box']}")
    say("\n".join(lines))


def say(text: str) -> None:
    """Print and flush, so that a full disk is reported here."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at exit
        if not isinstance(error, BrokenPipeError):  # the reader has closed the pipe
            raise OSError(error.errno, error.strerror, "standard output") from error
