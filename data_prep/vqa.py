"""TFDS builders `vqa_images` and `vqa`: VQA v2, images with regions, and the questions about them.

Source: questions and annotations from visualqa.org (CC BY 4.0), images from cocodataset.org (terms
of their owners), regions of the bottom-up-attention detector, either as the official VL-BERT
repository distributes them or as the features that Anderson et al. published. The folder
`--source`:

    vqa/v2_OpenEnded_mscoco_{train2014,val2014,test-dev2015,test2015}_questions.json
    vqa/v2_mscoco_{train2014,val2014}_annotations.json
    vqa/answers_vqa.txt            answer vocabulary, one per line, with `<unk>`; or --answers=3129
    vgbua_res101_precomputed/      or --features_tsv, see vqa_regions.py
      {trainval2014,test2015}_resnet101_faster_rcnn_genome/9.json    of image 9; or a .zip
    {train2014,val2014,test2015}/COCO_train2014_000000000009.jpg     with --images; or a .zip

    python -m data_prep.build vqa --source=coco --features --data_dir=data

The released boxes have 10 to 100 regions per image. `--regions=36` reads the folders of the variant
with 36 regions, `--regions=A,B` two other folders (of train2014 and val2014; of test2015). VQA v2
has 204,721 images, 658,111 questions with answers and 447,793 without (107,394 of them also in
test_dev). A region takes 8 KB with --features, so 36 regions per image take 60 GB; --images adds
0.16 MB per image. One CPU core builds 300 images per second (36 regions with features, or JPEGs of
640x480 pixels; 170 with both) and 8,500 questions. All questions are read and checked first, which
takes 20 s and 0.9 GB of memory.

The splits of `vqa` are train, val, test_dev and test, as far as their questions exist or --splits
lists them. A batch holds one orientation, so each split is two, `train_landscape` (width >= height
of the image) and `train_portrait`. The order is that of the question file; annotations are joined
by question_id. `vqa_images` has one split, `images`: record k is image number k, in the order in
which the splits first ask about it.

Record of `vqa_images` (n regions in the order of the file):

    index, image_id  int64, text    image number; number in COCO, such as `9`
    image            bytes          the downloaded JPEG, RGB; empty without --images
    image_size       int32 2        width, height: the detector's with --features, else the JPEG's
    boxes            float32 n 4    x1 y1 x2 y2 in pixels of the image, not clipped
    features         float32 n g    (0, 0) without --features
    image_feature    float32 g      `image_box_feature` of the whole image; empty in most files
    best_class       int32 n        with --classes: the best one of the detector, from 1; its line in objects_vocab.txt
    best_score       float32 n      with --classes: its score

Record of `vqa`:

    index           int64    number in the question file
    question_id     int64    official number
    image_number    int64    record of `vqa_images`
    question        text
    answer_type     text     "yes/no", "number", "other"; "" without annotations
    answers         text *   of the annotators (10), raw and in order; none without annotations

`CORPUS_answers.txt`, in the folder `vqa`, is the answer vocabulary. Without --answers it is a copy
of the official file. `--answers=N` creates N lines: `<unk>`, then the N-1 most frequent answers of
the annotators of the train split, ties in alphabetical order. The official code looks an
annotator's answer up raw among entries that were converted to lower case and by a punctuation rule,
so an entry that these change ("t-shirt", "what?") may never be found. Therefore raw answers are
counted, and only answers that the conversion does not change are used. For both files the build
prints which fraction of the answers they cover, and ends if no question of a split has any.

The official score compares each annotator of a question with the others. A question with fewer than
four answers ends the build, because no answer could score 1.

Every defect ends the build with one line, except for gray images (encoded as RGB) and images whose
size differs from the detector's (kept), which `manifest.json` lists."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.builder import (
    Made,
    Note,
    OrderedBuilder,
    array_feature,
    class_features,
    image_features,
    oriented,
    region_feature,
)  # fmt: skip
from data_prep.image_table import placed_images
from data_prep.manifest import SourceError
from data_prep.sources import ArchiveFolder
from data_prep.vqa_files import VQADownload
from data_prep.vqa_regions import RegionFiles, RegionTable, path_prefix, region_folders
from vlbert_jax.data.region_files import NO_CLASSES, Unusable, decode_regions


class VQAImages(OrderedBuilder, skip_registration=True):
    """The builder of the images with their regions; next to the records it writes `sizes.json`."""

    name = "vqa_images"
    NOT_SENT = ("download",)

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
        classes: bool = False,
    ):
        """Create the builder.

        Args:
          corpus: name of the corpus.
          data_dir: folder of all corpora.
          download: the questions, which decide the images and their order.
          regions: folders of region files, see `RegionFiles`.
          features_tsv: tables of regions, which replace the region files.
          features: store the region features.
          images: store the images.
          num_threads: number of threads that read regions and images.
          classes: store the best class of each region and its score.

        Raises:
          SourceError: `classes` are asked of tables, which have none.
        """
        self.download, self.files = download, ArchiveFolder(download.root)
        self.regions, self.tables = regions, [pathlib.Path(path) for path in features_tsv]
        self.features, self.images, self.num_threads = features, images, num_threads
        self.classes = classes
        if classes and self.tables:
            raise SourceError(f"{self.tables[0]}: tables of regions have no class scores; {NO_CLASSES}")
        self._sizes: list[list[int]] = []
        self._width = 0  # of the features so far
        options = dict(splits=list(download.questions), features=features, images=images)
        options |= dict(features_tsv=[path.name for path in self.tables]) if self.tables else dict(regions=regions)
        super().__init__(corpus, data_dir, str(download.root), options | (dict(classes=True) if classes else {}))

    def inputs(self) -> list[pathlib.Path]:
        """Return the questions, the regions and, if they are stored, the images."""
        image_sets = sorted(set(self.download.images().values()))
        regions = self.tables or [self.files.place(f"{folder}.zip@/") for folder in region_folders(self.regions)]
        images = [self.files.place(f"{image_set}.zip@/") for image_set in image_sets if self.images]
        return [*self.download.files(), *regions, *images]

    def record_features(self) -> dict[str, Any]:
        """Return the features; see the docstring of the module."""
        return image_features() | dict(
            boxes=array_feature(None, 4), features=region_feature(self.features), image_feature=array_feature(None),
            **class_features(self.classes),
        )  # fmt: skip

    def number_of_items(self) -> int:
        """Return the number of images."""
        return len(self.download.images())

    def items(self) -> Iterator[tuple[int, tuple[int, str]]]:
        """Return (number of the record, (number of the image, its set)). Raises SourceError."""
        image_ids = self.download.images()
        image_sets = set(image_ids.values())
        self._prefixes = {image_set: path_prefix(self.files, image_set) for image_set in image_sets if self.images}
        if self.tables:
            self._source = RegionTable(self.tables, image_ids, self.manifest)
        else:
            self._source = RegionFiles(self.files, self.regions, image_sets)
        self.files.close()  # the processes that read images open their own archives
        return enumerate(image_ids.items())

    def absorb(self, facts: list[tuple[str, list[int], list[int]]]) -> None:
        """Keep the sizes, and check that all features have one width. Raises SourceError."""
        for file, size, widths in facts:
            for field, width in zip(("features", "image_feature"), widths, strict=True):
                self._width = self._width or width
                if width not in (0, self._width):
                    raise SourceError(
                        f"{file}: {field} of image {size[0]} is {width} wide, earlier features are {self._width} wide; "
                        "use the features of one detector"
                    )
            self._sizes.append(size)

    def conclude(self, folder: pathlib.Path) -> None:
        """Write sizes.json."""
        (folder / "sizes.json").write_text(json.dumps(self._sizes) + "\n")

    def make(self, item: tuple[int, tuple[int, str]]) -> Made:
        """Return the record of an image. Raises SourceError."""
        number, (image_id, image_set) = item
        file, content = self._source.read(image_set, image_id)
        if not self.tables:
            self.manifest.extracted(str(content.get("extractor", "")), file)
        try:
            found = decode_regions(content, self.features, self.classes)
        except Unusable as error:
            remedy = "" if self.classes and "classes" not in content else "; download it again"
            raise SourceError(f"{file}: image {image_id}: {error}{remedy}") from None
        record: dict[str, Any] = dict(
            index=number, image_id=str(image_id), image=b"", image_size=np.array(found.size, np.int32),
            boxes=found.boxes, features=found.features, image_feature=found.image_feature,
        )  # fmt: skip
        if self.classes:
            record |= dict(best_class=found.best_class, best_score=found.best_score)
        notes: list[Note] = []
        if self.images:
            path = f"{self._prefixes[image_set]}COCO_{image_set}_{image_id:012d}.jpg"
            record["image"], size = self._image(path, number, image_id, found.size, notes)
            if not self.features:
                record["image_size"] = np.array(size, np.int32)
        size = [image_id, *record["image_size"].tolist()]
        widths = [record[name].shape[-1] for name in ("features", "image_feature")]
        return Made("images", record, notes, fact=(file, size, widths))

    def _image(
        self, path: str, number: int, image_id: int, detector_size: tuple[int, int], notes: list[Note]
    ) -> tuple[bytes, tuple[int, int]]:
        """Return the JPEG and its (width, height), and add what is unusual to the notes.

        Raises SourceError.
        """
        try:
            image, size, conversion = self.files.read_jpeg(path, upright=bool(self.manifest.extractor))
        except Unusable as error:
            raise SourceError(
                f"{self.files.root / path}: image {image_id} cannot be read ({error}); download it again"
            ) from None
        if conversion:
            notes.append(("converted", path, number, conversion))
        if size != detector_size:
            notes.append(("kept", path, number, f"the size is {size}, the detector saw {detector_size}"))
        return image, size


class VQAQuestions(OrderedBuilder, skip_registration=True):
    """The builder of the questions; `images` is the directory that `VQAImages` wrote."""

    name = "vqa"
    NOT_SENT = ("download",)

    def __init__(self, corpus: str, data_dir: str | pathlib.Path, download: VQADownload, images: str | pathlib.Path):
        self.download, self.sizes = download, pathlib.Path(images) / "sizes.json"
        super().__init__(corpus, data_dir, str(download.root), dict(splits=list(download.questions)))

    def inputs(self) -> list[pathlib.Path]:
        """Return the questions and annotations."""
        return self.download.files()

    def record_features(self) -> dict[str, Any]:
        """Return the features; see the docstring of the module."""
        f = tfds.features
        numbers = {name: f.Scalar(np.int64) for name in ("index", "question_id", "image_number")}
        return numbers | dict(question=f.Text(), answers=f.Sequence(f.Text()), answer_type=f.Text())

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield a record per question.

        Raises SourceError if the table of images lacks its image, or its sizes are damaged.
        """
        images = placed_images(self.sizes.parent)
        for split, questions in self.download.questions.items():
            for index, question in enumerate(tqdm(questions, split, unit=" questions", mininterval=1)):
                image = images.get(str(question.image_id))
                if image is None:
                    raise SourceError(
                        f"{self.sizes.parent}: image {question.image_id} of question_id {question.question_id} in "
                        f"{split} is missing; remove the folder and build again"
                    )
                yield (
                    oriented(split, image.width, image.height),
                    dict(
                        index=index,
                        question_id=question.question_id,
                        image_number=image.number,
                        question=question.text,
                        answers=list(question.answers),
                        answer_type=question.answer_type,
                    ),
                )
