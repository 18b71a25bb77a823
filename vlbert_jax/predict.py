"""Ask a trained model about pictures of your own.

    python -m vlbert_jax.predict --checkpoint=PATH --image=photo.jpg [--image=...] QUESTIONS [options]

PATH is a workdir, one checkpoint in it, or any weights that `python -m vlbert_jax.convert` knows. QUESTIONS:
  --question="what is on the table?"        VQA: the best answers, each with a probability of its own
  --expression="the red cup"                RefCOCO+: the box that is meant
  --caption="a [MASK] on the table"         pre-training: the masked words, with and without the image
  --question=... --choices "a" "b" ...      VCR: the probability of each choice; [1] names the first region
  nothing                                   the regions that are found; needs no checkpoint
Each may be given several times and is asked of every picture. --attention=PAGE.html shows where each layer and head
looks: open it in any browser.

Regions come from --detector=PATH (see vlbert_jax.detector), or from --boxes=FILE.json for each picture: rows
x1 y1 x2 y2 in its pixels, an object with "boxes" and perhaps "labels" and "features", or the official file of an image.
Without either they are the whole image and a 3 x 3 grid. A detector of the published size describes 300 proposals, most
of the time that an answer takes on a CPU; --proposals=75 takes half of it and finds other, fewer regions. Whoever asks
often sets JAX_COMPILATION_CACHE_DIR=FOLDER: what a command compiles is kept there for the next.

Examples:
  python -m vlbert_jax.predict --checkpoint=workdirs/vqa --image=photo.jpg --question="what color is the ball?"
  python -m vlbert_jax.predict --checkpoint=workdirs/demo --image=photo.jpg --caption="a [MASK] ball" --out=ball.png
  python -m vlbert_jax.predict --image=photo.jpg --detector=detector/ --out=regions.png
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from vlbert_jax import attention_page, detector, drawing, predictor
from vlbert_jax.boxes import Found, given


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m vlbert_jax.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = dict(action="extend", nargs="+", default=[])
    parser.add_argument("--checkpoint", help="the trained model")
    parser.add_argument("--image", required=True, metavar="FILE", **several)
    for name in ("question", "expression", "caption"):
        parser.add_argument(f"--{name}", metavar="TEXT", **several)
    parser.add_argument("--choices", metavar="TEXT", **several)
    parser.add_argument("--boxes", metavar="FILE.json", help="regions, a file for each picture", **several)
    parser.add_argument("--detector", metavar="PATH", help="what finds the regions")
    usual = detector.Settings().proposals_after
    parser.add_argument("--proposals", type=int, default=usual, metavar="N", help="that it chooses from (%(default)s)")
    parser.add_argument("--out", metavar="PICTURE.png", type=Path, help="with boxes and answers; numbered if several")
    parser.add_argument("--attention", metavar="PAGE.html", type=Path, help="where words and regions look")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--vocab", default="", metavar="vocab.txt", help="in place of the run's config.data.vocab")
    parser.add_argument("--answers", default="", metavar="FILE", help="in place of the run's config.data.answers")
    parser.add_argument("--data_dir", default="", metavar="DIR", help="in place of the run's config.data.data_dir")
    # Behind "=" argparse takes one value only, and calls the second of --image=a.jpg b.jpg unrecognized.
    lists = ("--image=", "--question=", "--expression=", "--caption=", "--choices=", "--boxes=")
    return parser.parse_args([part for arg in argv for part in (arg.split("=", 1) if arg.startswith(lists) else [arg])])


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for what can be told before anything is loaded."""
    texts = args.question + args.expression + args.caption
    if texts and not args.checkpoint:
        raise ValueError("a question needs --checkpoint; without it only the regions are found")
    if args.boxes and len(args.boxes) != len(args.image):
        raise ValueError(f"{len(args.image)} pictures, but {len(args.boxes)} files in --boxes: one for each")
    if args.choices and not args.question:
        raise ValueError("--choices needs the --question that they answer")
    if args.attention and not texts:
        raise ValueError("--attention needs a text: --question, --expression or --caption")
    if args.proposals < 1:
        raise ValueError(f"--proposals={args.proposals}: one at least")
    if args.out and args.out.suffix.lower() not in drawing.SUFFIXES:
        raise ValueError(f"--out={args.out}: the name of a picture ends in one of {', '.join(drawing.SUFFIXES)}")
    for path in filter(None, (args.out, args.attention)):
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")


def ask(model: predictor.Predictor, picture: predictor.Picture, args: argparse.Namespace) -> list[dict[str, Any]]:
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


def lines(answer: dict[str, Any]) -> list[str]:
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


def marks(answers: list[dict[str, Any]]) -> dict[int, str]:
    """Which boxes to draw strongly, and what to write on them: of each expression the best."""
    written = {}
    for answer in answers:
        if "places" in answer and (region := answer["places"][0]["region"]):
            text = f"{answer['expression']}  {answer['places'][0]['probability']:.0%}"
            written.setdefault(region - 1, []).append(text)
    return {box: ", ".join(texts) for box, texts in written.items()}


def numbered(path: Path, number: int, count: int) -> Path:
    return path if count == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def main(argv: list[str]) -> int:
    args = parse(argv)
    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING, force=True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        check(args)
        results = run(args)
        if args.json:
            say(json.dumps(results, indent=2, ensure_ascii=False))
    except (ValueError, OSError) as error:
        if os.environ.get("VLBERT_DEBUG"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Answers, picture by picture; prints them unless --json is asked for."""
    model, finder = None, None
    for number, image in enumerate(args.image):  # what cannot be read is told before anything takes its time
        _, pixels = predictor.read_picture(image)
        if args.boxes:
            given(args.boxes[number], pixels.shape[1::-1])
    if args.detector:
        settings = detector.Settings(proposals_after=args.proposals)
        finder = detector.load(args.detector, settings)
    if args.checkpoint:
        model = predictor.load(
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
            pixels, found, answers = picture.pixels, picture.regions, ask(model, picture, args)
        else:
            _, pixels = predictor.read_picture(image)
            found, answers = predictor.find(pixels, boxes, finder), []
        about = dict(image=image, width=pixels.shape[1], height=pixels.shape[0], **described(found), asked=answers)
        if not args.json:
            show(about)
        if args.out:
            path = numbered(args.out, number, len(args.image))
            names = [f"{i} {found.name(i)}" if label else str(i) for i, label in enumerate(found.labels, 1)]
            below = [line for answer in answers for line in lines(answer)]
            drawing.save(drawing.draw(pixels, found.boxes, names, marks(answers), below), path)
            about["picture"] = str(path)
        for place, answer in enumerate(answers if args.attention else ()):
            path = numbered(args.attention, len(answers) * (number - 1) + place + 1, len(answers) * len(args.image))
            text, *below = lines(answer)
            choice = answer["answers"][0]["text"] if args.choices else ""
            seen = model.attention(picture, text, choice=choice)
            title, below = f"{text} ({Path(image).name})", "\n".join(line.strip() for line in below)
            attention_page.write(path, pixels, found.boxes, *seen, title, below)
            answer["attention"] = str(path)
        results.append(about)
    return results


def show(about: dict[str, Any]) -> None:
    count = len(about["regions"])
    told = [f"{about['image']}: {about['width']} x {about['height']}; {count} regions from {about['source']}"]
    for answer in about["asked"]:
        told += [f"  {line}" for line in lines(answer)]
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
