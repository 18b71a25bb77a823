"""Small correct files of every format that fuzz.py changes, as other programs or this project write them."""

from __future__ import annotations

import bz2
import collections
import gzip
import io
import json
import lzma
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image

from tests.helpers import GOLDEN
from tests.helpers.vqa_case import COLUMNS, annotation, encode, jpeg, put, question, regions
from tests.helpers.weights_case import caffe_file

PART = "00000-of-00001-000000"  # of a store of regions
IMAGES = ("a", "b")
REFERENCES = "coco/refcoco+/refs(unc).p"
TABLE = "photos_images/c/1.0.0"
VOCABULARY = 9  # tokens of vocab.txt
VERSIONS = dict(
    command="main", revision="abc", devices={"cpu": 1}, hosts=1, machine="m", packages={"jax": "1"},
    started="2026-01-01T00:00:00+00:00",
)  # fmt: skip


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


# --- Weights -----------------------------------------------------------------------------------------------


def caffe_files() -> list[bytes]:
    layers = {
        "conv1": [_noise(2, 3, 3, 3)], "bn_conv1": [_noise(2), _noise(2), np.float32([2])],
        "scale_conv1": [_noise(2), _noise(2)], "res2a_branch1": [_noise(2, 2, 1, 1)], "fc": [_noise(4, 2), _noise(4)],
    }  # fmt: skip
    return [caffe_file(layers), caffe_file(layers, legacy=True), caffe_file(layers, legacy=True, old_layers=True)]


def _saved(folder: Path, tensors: dict, metadata: dict | None = None) -> bytes:
    from safetensors.numpy import save_file

    save_file(tensors, folder / "seed", metadata)
    return (folder / "seed").read_bytes()


def safetensors_files(folder: Path) -> list[bytes]:
    from vlbert_jax.weights.containers import CONFIG_METADATA

    tensors = dict(a=_noise(2, 3), b=np.arange(4), c=_noise(2).astype(np.float16))
    metadata = {CONFIG_METADATA: json.dumps(dict(model=dict(encoder={}), task="pretrain"))}
    return [_saved(folder, tensors), _saved(folder, tensors, metadata)]


def torch_files(folder: Path) -> list[bytes]:
    import torch

    tensors = dict(a=torch.ones(2, 3), b=torch.arange(3), c=torch.ones(2, dtype=torch.bfloat16))
    trees = (tensors, dict(state_dict=tensors, epoch=3, optimizer=dict(state={0: torch.ones(2)}, lr=np.float64(0.1))))
    made = [pickled for tree in trees for pickled in hostile(folder, tree, protocols=(2,))]
    for tree in trees:
        for form in (True, False):
            torch.save(tree, folder / "seed", _use_new_zipfile_serialization=form)
            made.append((folder / "seed").read_bytes())
    return made


class Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(folder: Path, tree, protocols: tuple[int, ...] = (0, 2, 4)) -> list[bytes]:
    """Return pickles that would make a folder."""
    code = f"__import__('os').mkdir({str(folder / 'trace')!r})"
    calls = (Call(os.mkdir, str(folder / "trace")), Call(exec, code), Call(os.system, f"mkdir {folder / 'trace'}"))
    return [pickle.dumps(dict(tree=tree, more=call), protocol) for protocol in protocols for call in calls]


def pickles(folder: Path, tree) -> list[bytes]:
    """Return pickles of a tree in all protocols, and some that would run code."""
    plain = [pickle.dumps(tree, protocol) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    more = collections.OrderedDict(a=tree, b=[np.float32(2), "x", None, b"y"])
    return [*plain, pickle.dumps(more, 2), *hostile(folder, tree, (2, 4))]


def references(folder: Path) -> list[bytes]:
    (content,) = downstream(REFERENCES)(folder)
    tree = pickle.loads(content)
    return [pickle.dumps(tree, protocol) for protocol in (0, 2, 4)]


def bert_tensors() -> dict[str, np.ndarray]:
    """Return the tensors of a very small BERT."""
    shapes = {}
    for line in (GOLDEN / "names/names_base_prec.tsv").read_text().splitlines():
        name, shape = line.split("\t")
        shapes[name] = [int(number) for number in re.findall(r"\d+", shape)]
    kept = {name: shape for name, shape in shapes.items() if ".layer." not in name or ".layer.0." in name}
    return {name: _noise(*(min(number, 8) for number in shape)) for name, shape in kept.items()}


def bert_files(folder: Path) -> list[bytes]:
    rename = {"bert.embeddings.word_embeddings.weight": _noise(9, 4), "bert.encoder.layer.0.intermediate.dense.weight":
              _noise(8, 4), "bert.embeddings.token_type_embeddings.weight": _noise(2, 4)}  # fmt: skip
    return [_saved(folder, bert_tensors()), _saved(folder, rename)]


def bert_configs(folder: Path) -> list[bytes]:
    (folder / "model.safetensors").write_bytes(bert_files(folder)[1])
    config = dict(
        model_type="bert", hidden_act="gelu", vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2
    )
    return [json.dumps(config).encode()]


def weight_indices(folder: Path) -> list[bytes]:
    content = bert_files(folder)[1]
    (folder / "model-1.safetensors").write_bytes(content)
    names = ("word_embeddings.weight", "token_type_embeddings.weight")
    return [json.dumps(dict(weight_map={f"bert.embeddings.{name}": "model-1.safetensors" for name in names})).encode()]


def checksums(folder: Path) -> list[bytes]:
    from vlbert_jax.weights.checksums import CHECKSUMS, write_checksums

    put(folder / "state/a", b"abc")
    put(folder / "meta/b", b"")
    write_checksums(folder)
    return [(folder / CHECKSUMS).read_bytes()]


# --- Images, texts, archives -------------------------------------------------------------------------------


def images() -> list[bytes]:
    """Return small images of all formats and modes, among them a JPEG with EXIF and an animation."""
    made = [jpeg(), jpeg(mode="L"), jpeg(mode="CMYK")]
    noise = PIL.Image.effect_noise((24, 16), 60)
    forms = [(form, mode) for form in ("PNG", "TIFF") for mode in ("RGB", "RGBA", "L", "P", "I;16", "1", "LA")]
    forms += [(form, "RGB") for form in ("WEBP", "GIF", "BMP", "JPEG2000", "AVIF", "PPM", "ICO", "TGA", "PCX", "DDS")]
    PIL.Image.init()
    for form, mode in forms:
        if form in PIL.Image.SAVE:
            made.append(_encoded(noise.convert(mode), form))
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    made += [_encoded(noise, "JPEG", exif=exif), _encoded(noise, "JPEG", progressive=True)]
    made += [_encoded(noise, "GIF", save_all=True, append_images=[noise, noise])]
    return made + [_encoded(noise, "TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits")]


def _encoded(image: PIL.Image.Image, form: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def archives() -> list[bytes]:
    made = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", method) as archive:
            archive.writestr("a/1.jpg", jpeg((16, 12)))
            archive.writestr("b.png", _encoded(PIL.Image.new("RGB", (5, 4)), "PNG"))
            archive.writestr("._b.png", b"companion")
        made.append(content.getvalue())
    return made


def texts() -> list[bytes]:
    text = "".join(f"line {i} of caf\u00e9\n" for i in range(40)).encode()
    return [text, gzip.compress(text, mtime=0), bz2.compress(text), lzma.compress(text)]


def lists(folder: Path) -> list[bytes]:
    return [b"a.jpg\nimg.zip@/b.jpg\nfolder/c d.png\n"]


def caption_tables(folder: Path) -> list[bytes]:
    for number in range(3):
        put(folder / f"train_image/{number:08d}.jpg", b"")
    return [b"a dog\t00000000.jpg\nthe same dog\t00000000.jpg\na cat\t00000001.jpg\n", b"a\thttp://x\nb\thttp://y\n"]


# --- Records and regions -----------------------------------------------------------------------------------


def _store(folder: Path) -> None:
    """Write a store of regions of two images."""
    from data_prep.region_store import RegionStore

    shutil.rmtree(folder, ignore_errors=True)
    store = RegionStore(folder, dict(weights="w"), IMAGES, "array_record", 1)
    for part in store.shard(0):
        for number, name in enumerate(IMAGES):
            part.add(name, regions(number))
        part.finish()


def _of_store(name: str) -> Callable[[Path], list[bytes]]:
    def make(folder: Path) -> list[bytes]:
        _store(folder)
        return [(folder / name).read_bytes()]

    return make


region_parts, extractions = _of_store(f"parts/{PART}.json"), _of_store("extraction.json")


def region_records(folder: Path) -> list[bytes]:
    """Return the file of a store, and such files of foreign content with correct checksums."""
    from data_prep.region_store import _write_array_record
    from vlbert_jax.data.region_files import pack

    (content,) = _of_store(f"regions-{PART}.array_record")(folder)
    made = [content]
    for changed in (pack(regions(1, num_boxes=3)), pack(regions(1, boxes=""))):
        _write_array_record(folder / "seed", iter([changed, changed]))
        made.append((folder / "seed").read_bytes())
    return made


def packed_regions() -> list[bytes]:
    from vlbert_jax.data.region_files import pack

    return [pack(regions(1)), pack(regions(2, classes=encode(np.ones((2, 3))), extractor="x"))]


def region_files() -> list[bytes]:
    scores = np.ones((2, 3)) / 3
    made = regions(1, classes=encode(scores)), regions(2, classes=encode(scores), image_box_feature=encode(np.ones(6)))
    return [json.dumps(record).encode() for record in made]


def region_tables() -> list[bytes]:
    rows = ["\t".join(str(regions(number)[column]) for column in COLUMNS) for number in (1, 2, 3)]
    whole = "\n".join(rows)
    return [f"{whole}\n".encode(), "\n".join(["\t".join(COLUMNS), *rows, rows[0]]).encode()]


def boxes() -> list[bytes]:
    rows = [[1, 2, 30, 30], [5, 6, 20, 12.5]]
    named = dict(boxes=rows, labels=["dog", "cat"], scores=[0.5, 0.25], features=[[1, 2], [3, 4]])
    official = regions(1, image_box_feature=encode(np.ones(6)))
    return [json.dumps(content).encode() for content in (rows, named, official)]


def gallery_caches(folder: Path) -> list[bytes]:
    from vlbert_jax.detector.regions import Regions
    from vlbert_jax.prediction.search import _write_cache

    made = dict(source="s", labels=("a", "b"), scores=(0.5, 0.25), features=_noise(2, 4))
    _write_cache(folder / "seed.npz", {"a.jpg/1/2": Regions(boxes=_noise(2, 4), **made)})
    return [(folder / "seed.npz").read_bytes()]


def _table(folder: Path) -> None:
    """Build a table of two images."""
    from data_prep.image_table import ImageTable
    from data_prep.tables import run_builder

    shutil.rmtree(folder, ignore_errors=True)
    for name in IMAGES:
        put(folder / f"photos/{name}.jpg", jpeg((16, 12)))
    run_builder(ImageTable("photos_images", "c", folder, folder / "photos", {f"{name}.jpg": "" for name in IMAGES}))


def _of_table(name: str) -> Callable[[Path], list[bytes]]:
    def make(folder: Path) -> list[bytes]:
        _table(folder)
        return [(folder / TABLE / name).read_bytes()]

    return make


table_records = _of_table("photos_images-images.array_record-00000")
table_features, table_infos = _of_table("features.json"), _of_table("dataset_info.json")

# --- Vocabularies ------------------------------------------------------------------------------------------


def vocabularies(folder: Path) -> list[bytes]:
    return [b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nwhat\nball\n##s\n?\n"]


def tokenizer_configs(folder: Path) -> list[bytes]:
    (folder / "vocab.txt").write_bytes(vocabularies(folder)[0])
    return [json.dumps(dict(do_lower_case=True, strip_accents=None, tokenize_chinese_chars=True)).encode()]


# --- Data of tasks -----------------------------------------------------------------------------------------


def own_lines(folder: Path) -> list[bytes]:
    """Return lines of every kind of user-supplied data."""
    made = [
        dict(image="a.jpg", label="red"), dict(image="a.jpg", labels=["x", "y"], text="t"),
        dict(image="a.jpg", value=[0.5, 2], text="t", text2="u"), dict(images=["a.jpg", "b.jpg"], label=1, text="t"),
        dict(image="a.jpg", question="what ?", answers=["yes", "no"]), dict(image="a.jpg", texts=["t", "u"]),
        dict(image="a.jpg", text="t", choices=["x", "y"], label=1), dict(image="a.jpg", text="t", box=[1, 2, 3, 4]),
        dict(image="a.jpg", text="t", boxes=[[1, 2, 3, 4], [2, 3, 4, 5]], label=[0, 1], id="n"),
    ]  # fmt: skip
    return [f"{json.dumps(line)}\n{json.dumps(line | dict(id=7))}\n".encode() for line in made]


def own_tables(mark: str) -> Callable[[Path], list[bytes]]:
    rows = (
        ("image,label,text", 'a.jpg,red,"one, two"'), ("image,boxes,label,text", "a.jpg,1 2 3 4|2 3 4 5,0|1,t"),
        ("image,value", "a.jpg,2.5"), ("image,labels", "a.jpg,x|y"), ("image,text,box", "a.jpg,t,1 2 3 4"),
        ("image,question,answers", "a.jpg,what,yes|no"),
    )  # fmt: skip
    return lambda _: [f"{heading}\n{row}\n{row}\n".replace(",", mark).encode() for heading, row in rows]


def vizwiz() -> bytes:
    answers = [dict(answer="can", answer_confidence="yes")] * 10
    items = [dict(image=f"{k}.jpg", question="What?", answer_type="other", answers=answers) for k in range(2)]
    return json.dumps(items).encode()


def downstream(name: str) -> Callable[[Path], list[bytes]]:
    """Return a function that writes the synthetic corpus of VQA, RefCOCO+ and VCR; it returns a file."""

    def make(folder: Path) -> list[bytes]:
        from data_prep.scenes.downstream import write_downstream_corpus

        settings = dict(seed=1, num_train=1, num_val=1, num_test=1, feature_width=4)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_downstream_corpus(folder, settings)
        return [(folder / name).read_bytes()]

    return make


def caption_corpus(name: str) -> Callable[[Path], list[bytes]]:
    """Return a function that writes the synthetic corpus of captions, with folders in place of archives."""

    def make(folder: Path) -> list[bytes]:
        from data_prep.scenes.corpus import write_corpus

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        sizes = dict(num_train=2, num_val=1, num_train_stories=1, num_val_stories=1, feature_width=4)
        write_corpus(folder, dict(seed=1) | sizes)
        for archive in list(folder.glob("*.zip")):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(archive.with_suffix(""))
            archive.unlink()
        return [(folder / name).read_bytes()]

    return make


# --- Files that are scored ---------------------------------------------------------------------------------


def _scored(name: str) -> Callable[[Path], list[bytes]]:
    def make(folder: Path) -> list[bytes]:
        notes = [annotation(number, 7) | dict(question_type="what") for number in (1, 2)]
        put(folder / "annotations.json", dict(annotations=notes))
        put(folder / "questions.json", dict(questions=[question(number, 7) for number in (1, 2)]))
        put(folder / "results.json", [dict(question_id=number, answer="yes") for number in (1, 2)])
        return [(folder / name).read_bytes()]

    return make


def runs(name: str) -> Callable[[Path], list[bytes]]:
    """Return a function that writes the small files of a run, and returns one of them."""

    def make(folder: Path) -> list[bytes]:
        rows = [dict(step=2, split="train", loss=0.5, step_time_ms=3.0), dict(step=2, split="val", accuracy=0.25)]
        put(folder / "metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
        put(folder / "versions.json", VERSIONS)
        put(folder / "config.json", dict(schema=1, task="pretrain", data=dict(vocab="v"), model=dict(encoder={})))
        return [(folder / name).read_bytes()]

    return make


vqa_results, vqa_annotations = _scored("results.json"), _scored("annotations.json")
