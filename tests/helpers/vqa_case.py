"""Write small synthetic VQA downloads."""

import base64
import io
import json
import zipfile

import numpy as np
from PIL import Image

from data_prep.vqa_files import SPLITS
from vlbert_jax.data.records import open_split

FOLDER = "vgbua_res101_precomputed/{}_resnet101_faster_rcnn_genome"
COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


def read_all(directory, split):
    """Return the records of a split, or [] if the split does not exist."""
    data_dir, name = directory.parents[2], f"{directory.parents[1].name}/{directory.parent.name}"
    records = open_split(data_dir, name, split, optional=True)
    return [records[number] for number in range(len(records))]


def encode(array):
    return base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()


def zip_folder(folder):
    with zipfile.ZipFile(f"{folder}.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"{folder.name}/{path.name}")
            path.unlink()
    folder.rmdir()


def jpeg(size=(60, 40), mode="RGB"):
    content = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(content, "JPEG")
    return content.getvalue()


def regions(image_id, size=(60, 40), number=2, width=6, **changes):
    values = np.arange(number * width, dtype=np.float32).reshape(number, width) + image_id
    boxes = [(1 + i, 2, 30 + i, 30) for i in range(number)]
    record = dict(
        image_id=image_id, image_w=size[0], image_h=size[1], num_boxes=number, boxes=encode(boxes),
        features=encode(values),
    )
    return {key: value for key, value in (record | changes).items() if value is not None}


def question(number, image_id, **changes):
    return dict(question_id=number, image_id=image_id, question=f"what is {number}?") | changes


def annotation(number, image_id, answers=("yes",) * 6 + ("no",) * 4, **changes):
    answers = [dict(answer=a, answer_id=i, answer_confidence="yes") for i, a in enumerate(answers, 1)]
    return dict(question_id=number, image_id=image_id, answers=answers, answer_type="yes/no") | changes


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


class Download:
    """A download with two images of train and one of test.

    Tests change its attributes before `write`.
    """

    def __init__(self):
        self.questions = dict(
            train=[question(2, 9), question(1, 7), question(3, 9)],
            test=[question(5, 8)],
        )
        self.annotations = dict(train=[annotation(3, 9), annotation(1, 7, ["red"] * 10), annotation(2, 9)])
        self.regions = {7: regions(7, (40, 60)), 8: regions(8), 9: regions(9, image_box_feature=encode(np.ones(6)))}
        self.images = {7: jpeg((40, 60)), 8: jpeg(), 9: jpeg()}
        self.sets = {7: "train2014", 8: "test2015", 9: "train2014"}
        self.other = {}

    def write(self, root):
        for split, items in self.questions.items():
            put(root / f"vqa/v2_OpenEnded_mscoco_{SPLITS[split][0]}_questions.json", dict(questions=items))
        for split, items in self.annotations.items():
            put(root / f"vqa/v2_mscoco_{SPLITS[split][0]}_annotations.json", dict(annotations=items))
        for image_id, record in self.regions.items():
            folder = FOLDER.format("test2015" if self.sets[image_id] == "test2015" else "trainval2014")
            put(root / folder / f"{image_id}.json", record)
        for image_id, content in self.images.items():
            put(root / self.sets[image_id] / f"COCO_{self.sets[image_id]}_{image_id:012d}.jpg", content)
        for path, content in self.other.items():
            put(root / path, content)
        return root

    def write_tables(self, root):
        rows = ["\t".join(str(record[c]) for c in COLUMNS) for record in self.regions.values()]
        put(root / "a.tsv", f"{rows[2]}\n{rows[1]}\n{rows[2]}\n")  # image 9 occurs twice, out of order
        put(root / "b.tsv", "\t".join(["12", "x", "y", "z", "", ""]) + f"\r\n{rows[0]}")  # image 12 has no question
        return [root / "a.tsv", root / "b.tsv"]
