"""The files of image-text retrieval and captioning: Karpathy's splits of Flickr30k and COCO.

Source: dataset_flickr30k.json or dataset_coco.json of A. Karpathy's caption_datasets.zip (terms not stated; captions of
COCO CC BY 4.0); images of COCO (cocodataset.org) or of Flickr30k by the form of its authors, for research only. The
folder `--source`:

    dataset_flickr30k.json, flickr30k-images/1000092795.jpg           or flickr30k_images
    dataset_coco.json, {train2014,val2014}/COCO_val2014_000000391895.jpg; each folder may be a .zip

    python -m data_prep.build retrieval --dataset=coco --source=coco --regions=coco/regions --features --data_dir=data

Flickr30k has 29,000 / 1,014 / 1,000 images in train / val / test, with 5 sentences each. COCO has 82,783 in train,
30,504 in restval, which is used for training too, and 5,000 each in val and test, with 5 to 7 sentences. All sentences
are kept; a record is one of them, as written in `raw`, without blanks at its ends. `text_id` is its `sentid`. The
`example_id` is that of the image: `cocoid`, else the name of the file without its suffix."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from data_prep.json_lines import field, read_json
from data_prep.manifest import SourceError
from data_prep.public_texts import Corpus, PublicExample, image_prefix

DATASETS = dict(flickr30k=("train", "val", "test"), coco=("train", "restval", "val", "test"))
FOLDERS = ("flickr30k-images", "flickr30k_images")


class Retrieval(Corpus):
    """The reader of images with sentences."""

    name, kind = "retrieval", "match"

    def __init__(self, source: str | pathlib.Path, dataset: str = "flickr30k", splits: Iterable[str] = ()):
        """Read the file.

        Args:
          source: folder of the download.
          dataset: a key of `DATASETS`.
          splits: requested splits; empty = all.

        Raises:
          SourceError: the file is missing or not of this form, or a split is unknown or empty.
        """
        self.file, known, given = pathlib.Path(source) / f"dataset_{dataset}.json", DATASETS[dataset], list(splits)
        if unknown := [split for split in given if split not in known]:
            raise SourceError(f"--splits: there is no split {unknown[0]!r}; choose from {', '.join(known)}")
        content = read_json(self.file, dict, _slim)
        self._images: dict[str, list[tuple[str, dict[str, Any]]]] = {split: [] for split in known}
        for number, image in enumerate(field(content, "images", list, str(self.file))):
            place = f"{self.file}, image {number} (from 0)"
            if not isinstance(image, dict):
                raise SourceError(f"{place}: it is not an object; download the file again")
            split = field(image, "split", str, place)
            if split not in known:
                raise SourceError(f"{place}: the split is {split!r}, not {', '.join(known)}; choose another --dataset")
            self._images[split].append((place, image))
        super().__init__(source, [split for split in known if (split in given if given else self._images[split])])
        if empty := [split for split in self.splits if not self._images[split]]:
            raise SourceError(f"{self.file}: no image is of the split {empty[0]}; remove it from --splits")

    def files(self) -> list[pathlib.Path]:
        """Return the file of all splits."""
        return [self.file]

    def examples(self, split: str) -> Iterator[PublicExample]:
        """Yield the sentences of a split. Raises SourceError."""
        prefixes: dict[str, str] = {}
        for place, image in self._images[split]:
            name = field(image, "filename", str, place)
            folder = field(image, "filepath", str, place) if "filepath" in image else ""
            if folder not in prefixes:
                prefixes[folder] = image_prefix(self.root, *([folder] if folder else FOLDERS))
            path = (prefixes[folder] + name,)
            identifier = str(image.get("cocoid", pathlib.PurePosixPath(name).stem))
            sentences = field(image, "sentences", list, place)
            if not sentences:
                raise SourceError(f"{place}: {name} has no sentence; remove the image")
            for number, sentence in enumerate(sentences):
                about = f"{place}, sentence {number} (from 0)"
                text_id = field(sentence, "sentid", int, about)
                text = field(sentence, "raw", str, about).strip()
                yield PublicExample(str(text_id), about, path, dict(text=text, text_id=text_id, example_id=identifier))


def _slim(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop the tokens, which are most of the file."""
    entry.pop("tokens", None)
    return entry
