"""What models of retrieval and of captions are asked: images for a text, texts for an image, and captions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vlbert_jax.compiled import cache_folder
from vlbert_jax.data.examples import images_per_example
from vlbert_jax.data.image_files import find_images, read_image
from vlbert_jax.detector.detect import Detector
from vlbert_jax.detector.fingerprint import extractor_id
from vlbert_jax.detector.regions import Regions
from vlbert_jax.files import atomic_write
from vlbert_jax.prediction.requests import MOST, Request

TEXTS = 16  # texts that are read with an image at once
TOP = 10  # candidates that a search returns


class Found(NamedTuple):
    """An image or a text that a search found."""

    number: int  # in the list of candidates, from 0
    name: Any  # the candidate: a text, or the path of an image
    score: float
    probability: float  # that the two belong together, by the score


class Searching:
    """The methods of `Predictor` for models of image-text retrieval and of captions."""

    def describe(self: Any, image: Any, beams: int = 5) -> list[Any]:
        """Return captions of an image as `Answer`, the best first; of a list of images, a list of such lists.

        Args:
            image: As in `similarity`; or a list.
            beams: Captions that are kept while one is written, and returned; 1 = one caption, of which each word is the
                most probable one.

        Raises:
            ValueError: The image cannot be used, or the model is one of another task.
        """
        self.require("describe")
        if beams < 1:
            raise ValueError(f"beams is {beams}; it must be at least 1.")
        several = isinstance(image, list | tuple)
        requests = [Request(one, "captions", [""] * beams, None) for one in (image if several else [image])]
        rows = self._results(self._predict, requests)
        found = [self.task.decode(row, None, (), batch, self.config) for _, batch, row in rows]
        return found if several else found[0]

    def similarity(self: Any, images: Any, texts: Any, boxes: Any = None) -> Float[np.ndarray, "i t"]:
        """Return the score of every image with every text.

        Args:
            images: An image, or a list of images; each is a path, uint8 pixels [y, x, 3], a PIL image, or what `look`
                returned.
            texts: A text, or a list of texts.
            boxes: Regions, as in `Predictor`; of a list of images a list.

        Raises:
            ValueError: An image or a text cannot be used, or the model is one of another task.
        """
        self.require("similarity")
        if _asks_with_image(self):
            raise ValueError(f"{self.path} takes queries of an image and a text: call search((image, text), images).")
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not isinstance(images, list | tuple):
            images, boxes = [images], None if boxes is None else [boxes]
        images = list(images)
        _check_boxes(boxes, images)
        if not texts or not images:
            raise ValueError("similarity needs at least one image and one text.")
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("a text must be a string that is not empty")
        rows = [np.concatenate(row) for row in _rows(self, images, texts, boxes)]
        return np.stack(rows)

    def search(self: Any, query: Any, candidates: Any, top: int = TOP, boxes: Any = None) -> list[Found]:
        """Return the images that fit a text best, or the texts that fit an image best; the best first.

            predictor.search("a red ball", ["1.jpg", "2.jpg"])    # or a folder of images
            predictor.search("1.jpg", ["a red ball", "a blue box"])
            predictor.search(("1.jpg", "the ball is blue"), ["2.jpg", "3.jpg"])  # of models for such queries

        Candidates are images where they are a folder, files that exist, or not texts at all; otherwise they
        are texts. With a detector, the regions of a folder are kept in a cache file for the next search.

        Args:
            query: A text, an image, or a tuple of an image and a text.
            candidates: Images or a folder of images, or texts.
            top: Number of candidates to return.
            boxes: Regions of the candidates, a list, or where these are texts those of the image.

        Raises:
            ValueError: A folder has no image, or as `similarity`.
        """
        self.require("similarity")
        if isinstance(candidates, str | Path):
            candidates = find_images([str(candidates)])
        candidates = list(candidates)
        if not candidates:
            raise ValueError("There is nothing to search: the list of candidates is empty.")
        if isinstance(query, tuple):
            if not _asks_with_image(self):
                raise ValueError(f"{self.path} takes a text or an image as a query, not an image with a text.")
            image, text = query
            _check_boxes(boxes, candidates)
            return ranked(candidates, _of_query(self, image, text, candidates, boxes), top)
        if all(isinstance(one, str) and not os.path.isfile(one) for one in candidates):
            scores = self.similarity(query, candidates, boxes)[0]
        else:
            scores = self.similarity(candidates, query, boxes)[:, 0]
        return ranked(candidates, scores, top)


def ranked(candidates: Sequence[Any], scores: Float[np.ndarray, " c"], top: int) -> list[Found]:
    """Return the candidates with the highest scores, the best first."""
    chances = 1 / (1 + np.exp(-np.clip(scores, -80, 80)))
    order = np.argsort(-scores, kind="stable")[:top]
    return [Found(int(i), candidates[int(i)], float(scores[i]), float(chances[i])) for i in order]


def _check_boxes(boxes: Any, images: Sequence[Any]) -> None:
    """Raise ValueError where `boxes` are not a list with an entry for each of some images, or None."""
    if boxes is not None and not isinstance(boxes, list | tuple):
        raise ValueError("a list of images takes a list of boxes: one entry for each image, or None")
    if boxes is not None and len(boxes) != len(images):
        raise ValueError(f"the lists have different lengths: images {len(images)}, boxes {len(boxes)}")


def _asks_with_image(predictor: Any) -> bool:
    """Return whether queries of the model are images with a text."""
    return images_per_example(predictor.config) == 2


def _of_query(
    predictor: Any, image: Any, text: str, candidates: Sequence[Any], boxes: Sequence[Any] | None
) -> Float[np.ndarray, " c"]:
    """Return the score of each candidate for an image with a text; few candidates are in memory at once."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("a text must be a string that is not empty")
    (query,) = predictor.look([image])
    known, scores = boxes or known_regions(candidates, predictor.detector), []
    for start in range(0, len(candidates), MOST):
        some = slice(start, start + MOST)
        requests = [Request(query, text, (), None, "", seen) for seen in predictor.look(candidates[some], known[some])]
        scores += [rows["scores"][0, 0] for _, _, rows in predictor._results(predictor._predict, requests)]
    return np.array(scores, np.float32)


def _rows(
    predictor: Any, images: Sequence[Any], texts: Sequence[str], boxes: Sequence[Any] | None
) -> Iterator[list[np.ndarray]]:
    """Yield the scores of each image with the parts of the texts; few images are in memory at once."""
    parts = [texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS)]
    known = boxes or known_regions(images, predictor.detector)
    for start in range(0, len(images), MOST):
        some = slice(start, start + MOST)
        pictures = predictor.look(list(images[some]), known[some])
        requests = [Request(picture, part[0], part[1:], None) for picture in pictures for part in parts]
        scores = [rows["scores"][0] for _, _, rows in predictor._results(predictor._predict, requests)]
        for place in range(len(pictures)):
            of_image = scores[place * len(parts) : (place + 1) * len(parts)]
            yield [row[: len(part)] for row, part in zip(of_image, parts, strict=True)]


# --- Regions that are kept ----------------------------------------------------------------------------


def known_regions(images: Sequence[Any], detector: Detector | None) -> list[Regions | None]:
    """Return the regions of images that are files, from a cache file or from the detector; None = not known.

    The cache file is in the user's cache folder. Its name has the fingerprint of the detector and the folder of the
    images; an image whose file has changed is read again.
    """
    known: list[Regions | None] = [None] * len(images)
    if detector is None:
        return known
    folders: dict[Path, list[int]] = {}
    for number, image in enumerate(images):
        if isinstance(image, str | Path) and os.path.isfile(image):
            folders.setdefault(Path(image).resolve().parent, []).append(number)
    for folder, numbers in folders.items():
        paths = [Path(images[number]).resolve() for number in numbers]
        for number, regions in zip(numbers, _of_folder(folder, paths, detector), strict=True):
            known[number] = regions
    return known


def _of_folder(folder: Path, paths: Sequence[Path], detector: Detector) -> list[Regions]:
    """Return the regions of some images of a folder; those that are new are added to its cache file."""
    name = hashlib.sha256(f"{folder}\n{extractor_id(detector.fingerprint)}".encode()).hexdigest()[:24]
    cache = cache_folder() / "galleries" / f"{name}.npz"
    found, changed, regions = _read_cache(cache), False, []
    for path in paths:
        mark = f"{path.name}/{path.stat().st_size}/{path.stat().st_mtime_ns}"
        if mark not in found:
            found = {key: value for key, value in found.items() if key.split("/")[0] != path.name}
            (found[mark],) = detector.detect([read_image(str(path))[1]])
            changed = True
        regions.append(found[mark])
    if changed:
        _write_cache(cache, found)
    return regions


def _read_cache(cache: Path) -> dict[str, Regions]:
    """Return the regions in a cache file; none where it does not exist or is damaged."""
    try:
        with np.load(cache, allow_pickle=False) as file:
            rows = json.loads(str(file["about"]))
            return {
                row["mark"]: Regions(
                    boxes=file[f"boxes_{i}"],
                    features=file[f"features_{i}"] if f"features_{i}" in file else None,
                    image_feature=file[f"image_feature_{i}"] if f"image_feature_{i}" in file else None,
                    source=row["source"], labels=tuple(row["labels"]), attributes=tuple(row["attributes"]),
                    scores=None if row["scores"] is None else tuple(row["scores"]), extractor=row["extractor"],
                )
                for i, row in enumerate(rows)
            }  # fmt: skip
    except Exception:  # zip and the parser of NumPy's headers raise errors of many classes
        return {}


def _write_cache(cache: Path, found: dict[str, Regions]) -> None:
    arrays, rows = {}, []
    for i, (mark, regions) in enumerate(found.items()):
        row = {name: getattr(regions, name) for name in ("source", "labels", "attributes", "scores", "extractor")}
        rows.append(dict(mark=mark) | row)
        for name in ("boxes", "features", "image_feature"):
            if getattr(regions, name) is not None:
                arrays[f"{name}_{i}"] = getattr(regions, name)
    try:
        with atomic_write(cache) as path, path.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(rows)), **arrays)
    except OSError:  # without a place for the cache the search still works
        return
