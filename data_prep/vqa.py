"""TFDS builders `vqa_images` and `vqa`: VQA v2, images with regions, and the questions about them.

Source: questions and annotations from visualqa.org (CC BY 4.0), images from cocodataset.org (their owners' terms),
regions from the bottom-up-attention detector, either as the official VL-BERT repository hands them out or as the
features that Anderson et al. published. The folder `--source`:

    vqa/v2_OpenEnded_mscoco_{train2014,val2014,test-dev2015,test2015}_questions.json
    vqa/v2_mscoco_{train2014,val2014}_annotations.json
    vqa/answers_vqa.txt                     answers to choose from, one a line, with `<unk>`; or --answers=3129
    vgbua_res101_precomputed/               or --features_tsv, see vqa_regions.py
      {trainval2014,test2015}_resnet101_faster_rcnn_genome/9.json    of image 9; or the folder in a .zip of its name
    {train2014,val2014,test2015}/COCO_train2014_000000000009.jpg     with --images; or train2014.zip, ...

    python -m data_prep.build vqa --source=coco --features --data_dir=data

The released boxes have 10 to 100 regions an image; `--regions=36` reads the folders of the 36-region variant,
`--regions=A,B` any other two (of train2014 and val2014; of test2015). All of VQA v2 is 204,721 images, 658,111
questions with answers and 447,793 without (107,394 of them also in test_dev). A region takes 8 KB with --features, so
36 of them 60 GB in all; --images adds 0.16 MB an image. One CPU core builds 300 images a second (36 regions with
features, or JPEGs of 640x480; 170 with both) and 8,500 questions; all questions are read and checked first, which takes
20 s and 0.9 GB of memory.

Splits of `vqa`: train, val, test_dev, test, those whose questions are there or --splits, each halved by the image into
`train_landscape` (width >= height) and `train_portrait`, as a batch holds one orientation. Order as in the question
file; annotations are joined by question_id. `vqa_images` has one split, `images`: record k is image number k, in the
order in which the splits first ask about it.

Record of `vqa_images` (n regions in the file's order):

    index, image_id  int64, text    image number; COCO's number, `9`
    image            bytes          the JPEG as downloaded, RGB; empty without --images
    image_size       int32 2        width, height: the detector's with --features, else of the JPEG if it is there
    boxes            float32 n 4    x1 y1 x2 y2 in pixels of the image, not clipped
    features         float32 n g    (0, 0) without --features
    image_feature    float32 g      `image_box_feature`, which some files have for the whole image; else empty

Record of `vqa`:

    index, question_id, image_number   int64   place in the question file, official number, row of `vqa_images`
    question, answer_type              text    "yes/no", "number", "other"; "" without annotations
    answers                            text *  of the annotators (10), raw and in order; none without annotations

Beside it, in the folder `vqa`, `CORPUS_answers.txt`: the answers to choose from. Without --answers it is the official
file as it is. `--answers=N` makes N lines: `<unk>`, then the N-1 answers that annotators gave most often in the train
split, equals by alphabet. Officially an annotator's answer is looked up raw among entries that went through lower case
and a punctuation rule, so an entry that these change ("t-shirt", "what?") may never be found. Hence raw answers are
counted and only those that come through unchanged are taken. The build prints which share of all answers they are.

Anything wrong ends the build with one line. Only images that are grey (encoded as RGB) or not of the detector's size
(kept) do not: `manifest.json` lists them.
"""

from __future__ import annotations

import collections
import contextlib
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.builder import OrderedBuilder, SourceError, image_features, oriented
from data_prep.sources import ArchiveFolder, map_ahead, read_image
from data_prep.vqa_regions import RegionFiles, RegionTable, prefix_of
from vlbert_jax.data.region_files import Unusable, decode_regions

# split: (name in the question file, images)
SPLITS = dict(
    train=("train2014", "train2014"),
    val=("val2014", "val2014"),
    test_dev=("test-dev2015", "test2015"),
    test=("test2015", "test2015"),
)
ANNOTATED = ("train", "val")
UNKNOWN = "<unk>"
# What the official reading of the vocabulary changes: these marks, and full stops before anything but a digit.
CHANGED = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!\r\n]|\.(?!\d)")


class Question(NamedTuple):
    """A question with its annotation; `answers` and `answer_type` are empty where there is none."""

    question_id: int
    image_id: int
    text: str
    answers: tuple[str, ...] = ()
    answer_type: str = ""


def _slim(entry: dict):
    """Of an annotator's answer only its text, each text once: the 6.6 million answers would not fit otherwise."""
    answer = entry.get("answer")
    return sys.intern(answer) if type(answer) is str else entry


def _read_items(path: pathlib.Path, field: str) -> dict[int, dict]:
    """The list `field` of a JSON file by question_id. Raises SourceError naming file and question."""
    try:
        content = json.loads(path.read_bytes(), object_hook=_slim)
        items = content[field]
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{path}: no JSON object with {field!r} ({error}); download it again") from None
    found: dict[int, dict] = {}
    for place, item in enumerate(items):
        numbers = [item.get(key) for key in ("question_id", "image_id")] if isinstance(item, dict) else [None]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise SourceError(f"{path}: item {place} of {field!r} lacks question_id or image_id; download it again")
        if numbers[0] in found:
            raise SourceError(f"{path}: question_id {numbers[0]} stands there twice; keep one of them")
        found[numbers[0]] = item
    return found


def read_questions(root: pathlib.Path, split: str) -> list[Question]:
    """A split in the order of its question file, annotations joined by question_id. Raises SourceError."""
    name = SPLITS[split][0]
    path = root / f"vqa/v2_OpenEnded_mscoco_{name}_questions.json"
    items = _read_items(path, "questions")
    for number, item in items.items():
        if type(item.get("question")) is not str:
            raise SourceError(f"{path}: question_id {number} has no question; download it again")
    if split not in ANNOTATED:
        return [Question(number, item["image_id"], item["question"]) for number, item in items.items()]
    notes_path = root / f"vqa/v2_mscoco_{name}_annotations.json"
    if not notes_path.is_file():
        raise SourceError(f"{notes_path}: not there; download it, or leave {split} out by --splits")
    notes = _read_items(notes_path, "annotations")
    for missing, lacking, other in (
        (items.keys() - notes.keys(), notes_path, path),
        (notes.keys() - items.keys(), path, notes_path),
    ):
        if missing:
            raise SourceError(
                f"{lacking}: lacks question_id {min(missing)} of {other.name} ({len(missing)} in all); "
                "download both files again, of the same version"
            )
    questions = []
    for number, item in items.items():
        note = notes[number]
        if note["image_id"] != item["image_id"]:
            raise SourceError(
                f"{notes_path}: question_id {number} is about image {note['image_id']}, in {path.name} about "
                f"{item['image_id']}; download both files again"
            )
        answers, answer_type = note.get("answers"), note.get("answer_type")
        texts = isinstance(answers, list) and answers and all(type(answer) is str for answer in answers)
        if not texts or type(answer_type) is not str:
            raise SourceError(f"{notes_path}: question_id {number} lacks answers or answer_type; download it again")
        questions.append(Question(number, item["image_id"], item["question"], tuple(answers), sys.intern(answer_type)))
    return questions


class VQADownload:
    """All questions of a download, read and checked at once: `questions` by split, in official order.

    `splits` are those asked for, or all whose questions are there. Raises SourceError.
    """

    def __init__(self, source: str | pathlib.Path, splits: Iterable[str] = ()):
        self.root = pathlib.Path(source)
        if unknown := [split for split in splits if split not in SPLITS]:
            raise SourceError(f"--splits: there is no {unknown[0]!r}; choose from {', '.join(SPLITS)}")
        paths = {split: self.root / f"vqa/v2_OpenEnded_mscoco_{SPLITS[split][0]}_questions.json" for split in SPLITS}
        chosen = [split for split in SPLITS if split in splits] or [s for s in SPLITS if paths[s].is_file()]
        for split in chosen or ["train"]:
            if not paths[split].is_file():
                raise SourceError(f"{paths[split]}: not there; --source must be the folder that holds vqa/")
        with tqdm(chosen, "questions", unit=" splits") as progress:
            self.questions = {split: read_questions(self.root, split) for split in progress}

    def images(self) -> dict[int, str]:
        """The image set of each image that is asked about, in order of first appearance. Raises SourceError."""
        found: dict[int, str] = {}
        for split, questions in self.questions.items():
            image_set = SPLITS[split][1]
            for question in questions:
                if found.setdefault(question.image_id, image_set) != image_set:
                    raise SourceError(
                        f"{split}: image {question.image_id} of question_id {question.question_id} is one of "
                        f"{found[question.image_id]} and of {image_set}; image numbers must be COCO's"
                    )
        return found


def frequent_answers(questions: Iterable[Question], size: int) -> tuple[list[str], float]:
    """`<unk>` and the most frequent raw answers that are reachable; `size` entries at most. The share they cover."""
    counts = collections.Counter(answer for question in questions for answer in question.answers)
    usable = [a for a in counts if a and a != UNKNOWN and a == a.lower().strip() and not CHANGED.search(a)]
    usable = sorted(usable, key=lambda answer: (-counts[answer], answer))[: size - 1]
    return [UNKNOWN, *usable], sum(counts[answer] for answer in usable) / max(1, counts.total())


def write_answers(download: VQADownload, path: pathlib.Path, size: int = 0) -> bool:
    """Writes the answer vocabulary; see above. False if there is neither `size` nor an official file.

    Raises SourceError for a vocabulary without `<unk>`, or if `path` holds another one.
    """
    official = download.root / "vqa/answers_vqa.txt"
    if size:
        if "train" not in download.questions:
            raise SourceError("--answers counts the answers of the train split, which is not built; add it to --splits")
        answers, share = frequent_answers(download.questions["train"], size)
        content = "".join(f"{answer}\n" for answer in answers).encode()
        told = f"{len(answers):,} answers, {share:.1%} of what annotators said"
    elif official.is_file():
        content, told = official.read_bytes(), f"as {official}"
        if UNKNOWN.encode() not in [line.strip().lower() for line in content.splitlines()]:
            raise SourceError(f"{official}: lacks the line {UNKNOWN}; download it again, or make one by --answers=3129")
    else:
        return False
    if path.exists() and path.read_bytes() != content:
        raise SourceError(f"{path} holds other answers than are asked for: remove it, or change --corpus")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"incomplete.{path.name}")
    unfinished.write_bytes(content)
    unfinished.rename(path)
    print(f"{path}: {told}")
    return True


class VQAImages(OrderedBuilder, skip_registration=True):
    """`python -m data_prep.build vqa --help` explains the options. Beside the records: `sizes.json`."""

    name = "vqa_images"

    def __init__(
        self,
        corpus: str,
        data_dir: str | pathlib.Path,
        download: VQADownload,
        regions: str = "10-100ada",
        features_tsv: Iterable[str | pathlib.Path] = (),
        features: bool = False,
        images: bool = False,
        num_threads: int = 4,
    ):
        self.download, self.files = download, ArchiveFolder(download.root)
        self.regions, self.tables = regions, [pathlib.Path(path) for path in features_tsv]
        self.features, self.images, self.num_threads = features, images, num_threads
        options = dict(splits=list(download.questions), features=features, images=images)
        options |= dict(features_tsv=[path.name for path in self.tables]) if self.tables else dict(regions=regions)
        super().__init__(corpus, data_dir, str(download.root), options)

    def _info(self):
        f = tfds.features
        feature_shape = (None, None) if self.features else (0, 0)  # (None, None) cannot be read back if empty
        features = image_features() | dict(
            boxes=f.Tensor(shape=(None, 4), dtype=np.float32, encoding="bytes"),
            features=f.Tensor(shape=feature_shape, dtype=np.float32, encoding="bytes"),
            image_feature=f.Tensor(shape=(None,), dtype=np.float32, encoding="bytes"),
        )
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features), disable_shuffling=True)

    def records(self) -> Iterator[tuple[str, dict]]:
        wanted = self.download.images()
        with contextlib.closing(self.files):
            image_sets = set(wanted.values())
            folders = {image_set: prefix_of(self.files, image_set) for image_set in image_sets if self.images}
            if self.tables:
                source = RegionTable(self.tables, wanted, self.manifest)
            else:
                source = RegionFiles(self.files, self.regions, image_sets, self.manifest)
            sizes, width = [], 0

            def record(item):
                number, (image_id, image_set) = item
                return self._record(number, image_id, image_set, source, folders)

            progress = tqdm(wanted.items(), "images", len(wanted), unit=" images", mininterval=1)
            for file, notes, made in map_ahead(record, enumerate(progress), self.num_threads):
                for action, path, reason in notes:
                    self.manifest.note(action, path, made["index"], reason)
                for field in ("features", "image_feature"):
                    found = made[field].shape[-1]
                    width = width or found
                    if found not in (0, width):
                        raise SourceError(
                            f"{file}: {field} of image {made['image_id']} is {found} wide, features before it {width}; "
                            "take all from one detector"
                        )
                sizes.append([int(made["image_id"]), *made["image_size"].tolist()])
                yield "images", made
        (pathlib.Path(self.data_dir) / "sizes.json").write_text(json.dumps(sizes) + "\n")

    def _record(
        self, number: int, image_id: int, image_set: str, source: RegionFiles | RegionTable, folders: dict[str, str]
    ) -> tuple[str, list[tuple[str, str, str]], dict]:
        """(file of the regions, (action, file, reason) for the manifest, record). Raises SourceError."""
        file, content = source.read(image_set, image_id)
        try:
            size, boxes, features, image_feature = decode_regions(content, self.features)
        except Unusable as error:
            raise SourceError(f"{file}: image {image_id}: {error}; download it again") from None
        image, notes = b"", []
        if self.images:
            path = f"{folders[image_set]}COCO_{image_set}_{image_id:012d}.jpg"
            try:
                image, image_size, repair = read_image(self.files.read(path), upright=bool(self.manifest.extractor))
            except Exception as error:  # Pillow raises many kinds for bytes that are no whole image
                raise SourceError(
                    f"{self.files.root / path}: image {image_id} cannot be read ({error}); download it again"
                ) from None
            if repair:
                notes.append(("repaired", path, repair))
            if image_size != size:
                notes.append(("kept", path, f"image is {image_size}, the detector saw {size}"))
            if not self.features:
                size = image_size
        record = dict(
            index=number, image_id=str(image_id), image=image, image_size=np.array(size, np.int32),
            boxes=boxes, features=features, image_feature=image_feature,
        )
        return file, notes, record


class VQAQuestions(OrderedBuilder, skip_registration=True):
    """The questions; `images` is the directory that the build of `VQAImages` made."""

    name = "vqa"
    RECORDS_PER_SHARD = 200_000

    def __init__(self, corpus: str, data_dir: str | pathlib.Path, download: VQADownload, images: str | pathlib.Path):
        self.download, self.sizes = download, pathlib.Path(images) / "sizes.json"
        super().__init__(corpus, data_dir, str(download.root), dict(splits=list(download.questions)))

    def _info(self):
        f = tfds.features
        numbers = {name: f.Scalar(np.int64) for name in ("index", "question_id", "image_number")}
        texts = dict(question=f.Text(), answers=f.Sequence(f.Text()), answer_type=f.Text())
        return tfds.core.DatasetInfo(
            builder=self, features=f.FeaturesDict(numbers | texts), disable_shuffling=True
        )

    def records(self) -> Iterator[tuple[str, dict]]:
        sizes = json.loads(self.sizes.read_text())
        numbers = {image_id: number for number, (image_id, _, _) in enumerate(sizes)}
        for split, questions in self.download.questions.items():
            for index, question in enumerate(tqdm(questions, split, unit=" questions", mininterval=1)):
                number = numbers.get(question.image_id)
                if number is None:
                    raise SourceError(
                        f"{self.sizes.parent}: lacks image {question.image_id} of question_id {question.question_id} "
                        f"in {split}; remove it and build again"
                    )
                _, width, height = sizes[number]
                yield oriented(split, width, height), dict(
                    index=index, question_id=question.question_id, image_number=number, question=question.text,
                    answers=list(question.answers), answer_type=question.answer_type,
                )
