"""TFDS builders `own_images` and `own`: user-supplied images and examples.

The folder `--source` has the examples, one a line, and the images:

    train.jsonl  val.jsonl  test.jsonl    or .csv, .tsv; test may be missing, and may lack labels
    train_gallery.jsonl  ...              candidates of a search by an image with a text
    img/0001.jpg                          paths are relative to the folder; or `img.zip@/0001.jpg`

    python -m data_prep.build own --source=photos

The kind of the task follows from the fields of the first line (docs/own_data.md). The first error
ends the build with file, line and remedy. The table of images is described in image_table.py.

The splits of `own` are those of the files, each in two parts, `train_landscape` (width >= height of
the first image) and `train_portrait`, because a batch holds one orientation. Record:

    index          int64    number in the split
    example_id     text     `id`, otherwise the number of the line
    image_number   int64    record of `own_images`; `image_numbers` int64 2 for pairs
    extra          text     JSON object of the other fields of the line, "" without

and by kind:

    classify   text, text2 text ("" = none), labels text *, values float32 *, known bool (False: not labeled)
    answer     question_id int64, question text, answer_type text (""), answers text *  in lower case without
               punctuation; fewer than four are repeated, so that each of them scores 1
    choice     text text, choices text *, label int64 (-1: not labeled)
    match      text text, text_id int64, targets int64 *  one record for each text of an image; targets are image
               numbers, none if the image of the record itself is what the text describes
    region     expression text, context text (""), choices int64 *, targets int64 *, gold float64 * 4; and where the
               lines have boxes: boxes float32 * 4. See vlbert_jax/tasks/region/listed.py

Next to the records are the lists `CORPUS_labels.txt` or `CORPUS_answers.txt`, and
`CORPUS_SPLIT_gallery.json`, the image numbers of a gallery. The field `task` of `manifest.json`
has what a run must know: kind, loss, number of labels, length of the texts, number of regions."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_prep.builder import Made, OrderedBuilder, array_feature, example_features, oriented
from data_prep.image_table import ImageTable, NoRegions, PlacedImage, chosen_regions, placed_images
from data_prep.manifest import SourceError
from data_prep.own_files import Example, OwnFolder
from data_prep.own_report import next_command, report
from data_prep.own_targets import describe_task
from data_prep.parts import ONE, Workers
from data_prep.stored_boxes import StoredBoxes
from data_prep.tables import is_built, run_builders
from vlbert_jax.data.region_files import fractions_of
from vlbert_jax.files import atomic_write
from vlbert_jax.storage.mirror import store_file


class OwnExamples(OrderedBuilder, skip_registration=True):
    """The builder of the examples; `images` is the directory that `ImageTable` wrote."""

    name = "own"
    NOT_SENT = ("folder",)

    def __init__(
        self,
        corpus: str,
        data_dir: str | pathlib.Path,
        folder: OwnFolder,
        task: Mapping[str, Any],
        images: str | pathlib.Path,
    ):
        """Create the builder.

        Args:
          corpus: name of the corpus.
          data_dir: folder of all corpora.
          folder: the examples.
          task: the task, as `describe_task` returns it.
          images: directory of the images.
        """
        self.folder, self.task, self.images = folder, task, pathlib.Path(images)
        options = dict(splits=list(folder.examples), task={k: v for k, v in task.items() if k != "label_counts"})
        super().__init__(corpus, data_dir, str(folder.root), options)
        self.manifest.needs_text = False  # an image may be classified alone

    def inputs(self) -> list[pathlib.Path]:
        """Return the files of the examples."""
        return self.folder.files()

    def record_features(self) -> dict[str, Any]:
        """Return the features; see the docstring of the module."""
        form = self.folder.form
        fields = example_features(form.kind, self.folder.images_per_example)
        if form.kind == "match":
            fields |= dict(targets=array_feature(None, dtype=np.int64))
        has_boxes = form.kind == "region" and form.name != "box"
        return fields | (dict(boxes=array_feature(None, 4)) if has_boxes else {})

    def records(self) -> Iterator[Made]:
        """Yield the records of all splits. Raises SourceError if a box is not inside its image."""
        placed = placed_images(self.images)
        stored = StoredBoxes(self.images) if self.folder.form.name == "box" else None
        records = getattr(self, f"_{self.folder.form.kind}")
        for split, examples in self.folder.examples.items():
            index, found_boxes = 0, []
            for example in examples:
                found = [placed[path] for path in example.images]
                numbers = np.array([image.number for image in found], np.int64)
                extra = json.dumps(example.extra, ensure_ascii=False) if example.extra else ""
                common = dict(example_id=example.name, extra=extra)
                common |= dict(image_numbers=numbers) if len(found) > 1 else dict(image_number=numbers[0])
                for fields in records(example, found[0], placed):
                    usable = stored.usable(found[0].number, fields["gold"]) if stored else []
                    found_boxes += usable
                    part = oriented(split, found[0].width, found[0].height)
                    yield Made(part, dict(index=index) | common | fields, usable=usable)
                    index += 1
            if found_boxes and not any(found_boxes):
                self.folder.warnings.append(
                    f"{self.folder.paths[split]}: no detected region shares half of the union with a right box, so the "
                    "examples teach nothing and cannot be scored; give 'boxes' to choose from, or another detector"
                )
        boxes = [len(example.fields["boxes"]) for examples in self.folder.examples.values()
                 for example in examples if "boxes" in example.fields]  # fmt: skip
        most = max(boxes or (image.regions for image in placed.values()))
        self.manifest.task = dict(self.task) | dict(max_regions=most)

    def _classify(self, example: Example, *_) -> Iterator[dict[str, Any]]:
        fields = example.fields
        labels = fields.get("labels", [fields["label"]] if "label" in fields else [])
        values = np.array(fields.get("value", []), np.float32)
        known = any(name in fields for name in ("label", "labels", "value"))
        yield dict(text=fields["text"], text2=fields["text2"], labels=labels, values=values, known=known)

    def _answer(self, example: Example, *_) -> Iterator[dict[str, Any]]:
        self._last = getattr(self, "_last", -1) + 1
        answers = example.fields.get("answers", [])
        yield dict(question_id=self._last, question=example.fields["question"], answer_type="", answers=answers)

    def _choice(self, example: Example, *_) -> Iterator[dict[str, Any]]:
        fields = example.fields
        yield dict(text=fields["text"], choices=fields["choices"], label=fields.get("label", -1))

    def _match(
        self, example: Example, image: PlacedImage, placed: Mapping[str, PlacedImage]
    ) -> Iterator[dict[str, Any]]:
        targets = np.array([placed[path].number for path in example.fields.get("targets", ())], np.int64)
        for text in example.fields.get("texts", [example.fields.get("text")]):
            self._last = getattr(self, "_last", -1) + 1
            yield dict(text=text, text_id=self._last, targets=targets)

    def _region(self, example: Example, image: PlacedImage, _) -> Iterator[dict[str, Any]]:
        fields = example.fields
        boxes = np.array(fields.get("boxes", []), np.float32).reshape(-1, 4)
        gold = np.array([fields["box"]] if "box" in fields else [], np.float64).reshape(-1, 4)
        for these in (boxes, gold):
            _check_boxes(example, these, image)
        targets = np.array(fields.get("label", []), np.int64).reshape(-1)
        own = {} if self.folder.form.name == "box" else dict(boxes=boxes)
        choices = np.arange(len(boxes))
        yield dict(expression=fields["text"], context="", choices=choices, targets=targets, gold=gold) | own


def _check_boxes(example: Example, boxes: np.ndarray, image: PlacedImage) -> None:
    """Check that boxes [n, 4] are inside the image, up to a pixel. Raises SourceError."""
    size = image.width, image.height
    if reason := fractions_of(boxes, size):
        raise SourceError(f"{example.place}: {reason}")
    outside = (boxes < -1).any(1) | (boxes[:, 2:] > np.add(size, 1)).any(1) | (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if outside.any():
        raise SourceError(
            f"{example.place}: the box {boxes[outside][0].tolist()} is not inside the image {example.images[0]} of "
            f"{size[0]} x {size[1]} pixels; a box is x1 y1 x2 y2, the left upper and the right lower corner"
        )


# --- Building ---------------------------------------------------------------------------------


def build_own(
    source: str | pathlib.Path,
    data_dir: str | pathlib.Path = "data",
    corpus: str = "",
    images: str | pathlib.Path = "",
    regions: str | pathlib.Path = "",
    detector: str = "",
    features: bool = False,
    answers: int = 0,
    positive: str = "",
    store_images: bool = True,
    num_threads: int = 4,
    suggest: bool = True,
    workers: Workers = ONE,
    classes: bool = False,
) -> dict[str, Any]:
    """Build the tables of user-supplied data, and print what they are and the command that trains.

    Args:
      source: folder of the examples.
      data_dir: folder of all corpora.
      corpus: name of the corpus; by default that of the folder.
      images: folder to which the paths of images are relative; by default `source`.
      regions: folder that `extract_regions` wrote.
      detector: or weights of a detector; without both, the regions are a grid.
      features: store the features of the regions, too.
      answers: most entries of the vocabulary of answers; 0 = all answers of train.
      positive: the label that AUROC and average precision are of, of two.
      store_images: store the images; otherwise `features` are needed.
      num_threads: number of threads that read images.
      suggest: print the command that trains.
      workers: the processes that make the records.
      classes: store the best class of each region and its score.

    Returns:
      The paths `texts` and `images` (directories of records), and `task`, as the manifest has it.

    Raises:
      SourceError: something is wrong with the data; the message has file, line and remedy.
      ValueError: the weights of the detector cannot be used.
    """
    source, data_dir = pathlib.Path(source), pathlib.Path(data_dir)
    corpus = corpus or source.resolve().name
    folder = OwnFolder(source)
    root = pathlib.Path(images) if str(images) else source
    task, listed = describe_task(folder, corpus, answers, positive)
    if folder.form.name == "box" and not (regions or detector):
        raise SourceError(
            f"{folder.examples['train'][0].place}: a right 'box' is sought among detected regions; give "
            "--detector=WEIGHTS or --regions=FOLDER, or the candidates in 'boxes'"
        )
    if folder.form.name == "boxes":
        if regions or detector or features or classes:
            raise SourceError(
                f"{folder.examples['train'][0].place}: the regions are the 'boxes' of each line; give none of "
                "--detector, --regions, --features and --classes"
            )
        chosen = NoRegions()
    else:
        chosen = chosen_regions(root, folder.images, regions, detector, features, num_threads, classes)
    table = ImageTable("own_images", corpus, data_dir, root, folder.images, chosen, store_images, num_threads)
    if not is_built(table):
        table.check()
    task |= dict(features=features, images=store_images)
    examples = OwnExamples(corpus, data_dir, folder, task, table.data_dir)
    built_images, built_texts = run_builders(table, examples, workers=workers)
    placed = placed_images(built_images)
    files: dict[str, str] = {}
    if listed:
        files[task.get("labels") or task["answers"]] = "".join(f"{entry}\n" for entry in listed)
    for split, paths in folder.galleries.items():
        files[f"own/{corpus}_{split}_gallery.json"] = json.dumps([placed[path].number for path in paths]) + "\n"
    for name, content in files.items():
        with atomic_write(data_dir / name) as partial:
            partial.write_text(content, "utf-8")
        store_file(data_dir / name)
    report(folder, task, listed, corpus, chosen.options["regions"])
    if suggest:
        print(next_command(corpus, data_dir))
    return dict(texts=built_texts, images=built_images, task=task)
