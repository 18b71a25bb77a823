"""Test the extraction of regions: sources, formats, shards, interruptions, errors and builders."""

import base64
import contextlib
import io
import json
import resource
import zipfile

import numpy as np
import pytest
from PIL import Image

from data_prep import build, extract_regions
from data_prep.manifest import Manifest, SourceError
from data_prep.region_store import RegionStore, open_records
from data_prep.sources import ArchiveFolder, open_source
from data_prep.vqa_regions import RegionFiles, RegionTable
from tests.helpers import detector_case
from vlbert_jax.data.records import extractor_of, open_split
from vlbert_jax.data.region_files import ARRAYS, COLUMNS, decode_regions
from vlbert_jax.detector.fingerprint import extractor_id
from vlbert_jax.detector.weights import write_detector

NUMBER = 6  # images; number 4 is broken


def png(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def contents() -> dict[str, bytes]:
    images = {f"{i:08d}.jpg": png(detector_case.image(i)) for i in range(NUMBER)}
    return images | {"00000004.jpg": b"not an image"}


@pytest.fixture(scope="module")
def detector():
    return detector_case.shared_detector()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "train_image"
    folder.mkdir()
    for name, content in contents().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def expected(detector):
    """Return the expected records, computed with the detector."""
    found = {}
    for i in range(NUMBER):
        if i != 4:
            (regions,) = detector.detect([detector_case.image(i)])
            arrays = (regions.boxes, regions.class_probabilities, regions.attribute_probabilities, regions.features)
            texts = {n: base64.b64encode(a.tobytes()).decode() for n, a in zip(ARRAYS, arrays, strict=True)}
            found[f"{i:08d}"] = dict(image_id=i, image_h=48, image_w=64, num_boxes=len(regions.boxes), **texts)
    return found


def stored(folder, form: str) -> dict[str, dict]:
    """Return the records of a store by name."""
    if form == "tsv":
        rows = [line.split("\t") for path in folder.glob("*.tsv") for line in path.read_text().splitlines()]
        return {f"{int(row[0]):08d}": dict(zip(COLUMNS, row, strict=True)) for row in rows}
    files = ArchiveFolder(folder.parent)
    read = {}
    for i in range(NUMBER):
        with contextlib.suppress(FileNotFoundError):
            read[f"{i:08d}"] = json.loads(files.read(f"{folder.name}.zip@/{i:08d}.json"))
    return read


@pytest.mark.parametrize("form", ["array_record", "json", "tsv"])
def test_every_format_has_the_regions_of_the_detector(form, images, detector, expected, tmp_path):
    out = tmp_path / "regions"
    extract_regions.extract(open_source(images), detector, out, form=form)
    found, extractor = stored(out, form), extractor_id(detector.fingerprint)
    assert found.keys() == expected.keys()
    for name, record in expected.items():
        stored_record = {c: str(record[c]) for c in COLUMNS} if form == "tsv" else record | dict(extractor=extractor)
        assert found[name] == stored_record
    assert (out / "broken.txt").read_text().startswith("00000004: 00000004.jpg: the file is not an image")
    assert json.loads((out / "extraction.json").read_text())["fingerprint"] == detector.fingerprint
    assert not list(out.rglob("*.journal")) and not list(out.rglob("*.partial"))


def test_sources(images, tmp_path):
    names = tuple(f"{i:08d}" for i in range(NUMBER))
    (images / "readme.md").write_text("not an image")
    assert open_source(images).names == names
    with zipfile.ZipFile(tmp_path / "train_image.zip", "w") as archive:
        for name, content in contents().items():
            archive.writestr(name, content)
    zipped = open_source(tmp_path / "train_image.zip")
    assert zipped.names == names and zipped.files.read(zipped.paths[1]) == contents()["00000001.jpg"]
    (tmp_path / "list.txt").write_text("train_image/00000002.jpg\n\ntrain_image.zip@/00000001.jpg\n")
    listed = open_source(tmp_path / "list.txt")
    assert listed.names == ("train_image/00000002", "00000001")
    assert [listed.files.read(path) for path in listed.paths] == [
        contents()["00000002.jpg"], contents()["00000001.jpg"]
    ]  # fmt: skip
    (tmp_path / "Train_GCC.tsv").write_text("a dog\thttp://x/1\na red cat\thttp://x/2\n")
    table = open_source(tmp_path / "Train_GCC.tsv")
    assert table.names == names[:2] and table.captions == ("a dog", "a red cat")
    (tmp_path / "coco").mkdir()
    for name in ("COCO_val2014_000000000042.jpg", "COCO_val2014_000000581929.jpg"):
        (tmp_path / "coco" / name).write_bytes(b"")
    assert open_source(tmp_path / "coco").names == ("42", "581929")


def test_bad_sources(images, tmp_path):
    def refused(content: str, name: str, reason: str):
        (tmp_path / name).write_text(content)
        with pytest.raises(SourceError, match=reason):
            open_source(tmp_path / name)

    refused("a.jpg\na.jpg\n", "twice.txt", "an image is listed twice")
    refused("a.jpg\na.png\n", "same.txt", "a.jpg and a.png would both be named a")
    refused("a dog\n", "no_tabs.tsv", "line 1 must have a caption, a tab and an image or address")
    refused("a dog\thttp://x\n", "val.tsv", "neither this archive nor the folder val_image")
    refused("x", "what.xml", "must be a folder, a zip archive")
    with pytest.raises(SourceError, match="there is no image"):
        (tmp_path / "empty").mkdir()
        open_source(tmp_path / "empty")
    with pytest.raises(SourceError, match="there is no such file or folder"):
        open_source(tmp_path / "absent")


class InterruptedDetector:
    """A detector that raises KeyboardInterrupt after `after` images."""

    def __init__(self, detector, after: int):
        self.detector, self.left, self.seen = detector, after, 0
        self.fingerprint, self.batch_size = detector.fingerprint, detector.batch_size

    def detect(self, images):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= len(images)
        self.seen += len(images)
        return self.detector.detect(images)


@pytest.mark.parametrize("form", ["array_record", "json", "tsv"])
def test_an_interrupted_extraction_resumes(form, images, detector, expected, tmp_path):
    out, source = tmp_path / "regions", open_source(images)
    first, second = InterruptedDetector(detector, 3), InterruptedDetector(detector, 100)
    with pytest.raises(KeyboardInterrupt):
        extract_regions.extract(source, first, out, form=form)
    assert not stored(out, form)
    (journal,) = out.rglob("*.journal")
    with open(journal, "ab") as file:
        file.write(b'{"name": "00000003", "record": {"image_id"')  # the process was killed in the middle of a line
    extract_regions.extract(source, second, out, form=form)
    assert first.seen + second.seen == len(expected)
    assert {name: record["features"] for name, record in stored(out, form).items()} == {
        name: record["features"] for name, record in expected.items()
    }
    third = InterruptedDetector(detector, 100)
    extract_regions.extract(source, third, out, form=form)
    assert third.seen == 0


def test_shards_divide_the_images(images, detector, expected, tmp_path):
    (tmp_path / "Train_GCC.tsv").write_text("".join(f"thing {i}\thttp://x/{i}\n" for i in range(NUMBER)))
    out, source = tmp_path / "train_frcnn", open_source(tmp_path / "Train_GCC.tsv")
    for shard in range(2):
        assert not (tmp_path / "train_frcnn.json").exists()
        extract_regions.extract(source, detector, out, shard=(shard, 2))
    assert stored(out, "array_record").keys() == expected.keys()
    assert len(list(out.glob("*.array_record"))) == 2
    index = [json.loads(line) for line in (tmp_path / "train_frcnn.json").read_text().splitlines()]
    assert index[1] == dict(
        image="train_image.zip@/00000001.jpg", caption=["thing", "1"], frcnn="train_frcnn.zip@/00000001.json"
    )
    assert len(index) == NUMBER - 1
    # A folder accepts only the same number of shards, the same detector and the same images.
    with pytest.raises(SourceError, match="shards was 2, is now 3"):
        extract_regions.extract(source, detector, out, shard=(0, 3))
    with pytest.raises(SourceError, match="extractor was .* another --out"):
        extract_regions.extract(source, detector_case.detector(1), out, shard=(0, 2))
    (tmp_path / "Train_GCC.tsv").write_text("one\thttp://x\n")
    with pytest.raises(SourceError, match="images was"):
        extract_regions.extract(open_source(tmp_path / "Train_GCC.tsv"), detector, out, shard=(0, 2))
    damaged = out / "regions-00000-of-00002-000000.array_record"
    whole = damaged.read_bytes()
    for content in whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], b"":
        damaged.write_bytes(content)
        with pytest.raises(SourceError, match=f"^{damaged}: the regions of .* or remove .*-00002-000000.json and"):
            for name in expected:
                open_records(out).read(name)
    store = RegionStore(out, detector.fingerprint, source.names, "array_record", 2)
    next(lock := store.shard(0))
    with pytest.raises(SourceError, match="another process works on shard 0/2"):
        next(store.shard(0))
    lock.close()


@contextlib.contextmanager
def files_of_at_most(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("form, size", [("array_record", 6_000), ("array_record", 9_000), ("json", 1_500)])
def test_a_full_disk(form, size, images, detector, expected, tmp_path):
    """A full disk leaves no partial file of journal or records, and a second run succeeds."""
    out, source = tmp_path / "regions", open_source(images)
    with files_of_at_most(size), pytest.raises(OSError, match="File too large"):
        extract_regions.extract(source, detector, out, form=form)
    assert not list(out.rglob("*.partial")) and not stored(out, form)
    extract_regions.extract(source, detector, out, form=form)
    assert {name: record["boxes"] for name, record in stored(out, form).items()} == {
        name: record["boxes"] for name, record in expected.items()
    }


# --- From images to a corpus ----------------------------------------------------------------------


@pytest.fixture
def captions(tmp_path):
    """Return a table of three images: rotated by EXIF, with alpha, and gray of 16 bits."""
    folder = tmp_path / "val_image"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "00000000.jpg").write_bytes(png(np.rot90(detector_case.image(0)), exif=exif))
    alpha = np.dstack([detector_case.image(1), np.full((48, 64), 255, np.uint8)])
    (folder / "00000001.jpg").write_bytes(png(alpha))
    (folder / "00000002.jpg").write_bytes(png(detector_case.image(2)[..., 0].astype(np.uint16) << 8))
    (tmp_path / "Validation_GCC.tsv").write_text("a thing\thttp://x\nb thing\thttp://x\nc thing\thttp://x\n")
    return tmp_path / "Validation_GCC.tsv"


def conceptual(source, data_dir, *options) -> int:
    command = ["conceptual_captions", f"--source={source}", f"--data_dir={data_dir}", "--splits=val", "--features"]
    return build.main([*command, *options])


def test_from_images_to_a_corpus(captions, detector, tmp_path, capsys):
    out = tmp_path / "val_frcnn"
    extract_regions.extract(open_source(captions), detector, out)
    assert conceptual(tmp_path, tmp_path / "data") == 0
    capsys.readouterr()
    corpus = tmp_path / "data" / "region_captions" / "conceptual_captions"
    extractor = extractor_id(detector.fingerprint)
    manifest = json.loads((corpus / "1.0.0" / "manifest.json").read_text())
    assert manifest["extractor"] == extractor and manifest["records"] == {"val_landscape": 3}
    records = open_split(tmp_path / "data", "region_captions/conceptual_captions", "val_landscape")
    for i in range(3):
        record = records[i]
        with Image.open(io.BytesIO(record["image"])) as image:
            assert image.size == tuple(record["image_size"]) == (64, 48)
            difference = np.asarray(image, int) - detector_case.image(i)
        if i < 2:
            assert np.abs(difference).mean() < 8  # the error of JPEG at the edges of blocks
        assert record["features"].shape[1] == 32
    assert extractor_of(tmp_path / "data", "region_captions/conceptual_captions") == extractor


def test_vqa_reads_extracted_regions(detector, tmp_path):
    """The VQA builder reads files named by COCO's image number, and tables."""
    folder = tmp_path / "val2014"
    folder.mkdir()
    (folder / "COCO_val2014_000000000042.jpg").write_bytes(png(detector_case.image(0)))
    found = []
    for form in ("array_record", "json", "tsv"):
        out, manifest = tmp_path / "vgbua_res101_precomputed" / form, Manifest("", {})
        extract_regions.extract(open_source(folder), detector, out, form=form)
        if form == "tsv":
            regions = RegionTable(list(out.glob("*.tsv")), {42}, manifest)
        else:
            regions = RegionFiles(ArchiveFolder(tmp_path), f"{form},{form}", ["val2014"])
        _, record = regions.read("val2014", 42)
        found.append(decode_regions(record, with_features=True))
        assert manifest.extractor or record["extractor"] == extractor_id(detector.fingerprint)
        assert found[-1][0] == (64, 48)
        for ours, first in zip(found[-1][1:], found[0][1:], strict=True):
            np.testing.assert_array_equal(ours, first)


def test_mixed_extractors(captions, detector, tmp_path, capsys):
    """Records of two extractors in a corpus, or corpora of two extractors in a run, are errors."""
    out = tmp_path / "val_frcnn"
    extract_regions.extract(open_source(captions), detector, out, form="json")
    assert conceptual(tmp_path, tmp_path / "data") == 0
    record = json.loads((out / "00000001.json").read_text())
    for other in ("someone", None):
        record["extractor"] = other
        changed = {name: value for name, value in record.items() if value is not None}
        (out / "00000001.json").write_text(json.dumps(changed))
        assert conceptual(tmp_path, tmp_path / "data", "--corpus=mixed") == 2
        output = capsys.readouterr().err
        assert "00000001.json" in output and "cannot be mixed" in output
    manifest = tmp_path / "data" / "vqa_images" / "other" / "1.0.0" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps(dict(extractor="someone")))
    with pytest.raises(ValueError, match="do not go together: .*conceptual_captions by .*other by extractor someone"):
        extractor_of(tmp_path / "data", "region_captions/conceptual_captions", "vqa_images/other")


# --- The command ----------------------------------------------------------------------------------


def test_command(images, tmp_path, capsys):
    write_detector(detector_case.tensors(), {}, tmp_path / "detector", "orbax")
    (tmp_path / "one").mkdir()
    for name in ("00000000.jpg", "00000004.jpg"):
        (tmp_path / "one" / name).write_bytes((images / name).read_bytes())
    (tmp_path / "one" / "a.HEIC").write_bytes(b"")
    command = [str(tmp_path / "one"), f"--detector={tmp_path / 'detector'}", f"--out={tmp_path / 'out'}"]
    assert extract_regions.main([*command, "--format=json", "--threshold=0.2", "--fewest=5", "--proposals=6"]) == 0
    output = capsys.readouterr()
    assert "2 images" in output.out and "1 broken; 1 passed over because of the suffix (a.HEIC)" in output.out
    assert output.err.startswith(f"warning: {tmp_path / 'one'}: 1 passed over because of the suffix (a.HEIC); Pillow")
    assert "broken: 00000004: 00000004.jpg: the file is not an image" in output.err
    record = json.loads((tmp_path / "out" / "00000000.json").read_text())
    assert 5 <= record["num_boxes"] <= 6
    chosen = json.loads((tmp_path / "out" / "extraction.json").read_text())["fingerprint"]["settings"]
    assert (chosen["threshold"], chosen["fewest"], chosen["proposals_after"]) == (0.2, 5, 6)

    def refused(*options, reason: str):
        assert extract_regions.main([*command, *options]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
        assert len(lines) == 1 and lines[0].startswith("error: ") and reason in lines[0]

    refused("--fewest=9", "--most=8", reason="both must be at least 1, and --fewest at most --most")
    refused("--proposals=9", reason="--proposals=9 is too few for --fewest=10 regions")
    refused("--rules=huggingface", "--threshold=0.2", reason="--threshold has no effect with --rules=huggingface")
    refused("--rules=huggingface", "--proposals=9", reason="--proposals=9 is too few for --fewest=36 regions")
    refused("--format=json", reason="use the same detector, options and images, or another --out")
    refused(f"--detector={tmp_path / 'absent'}", reason="no weights at")
    refused(f"--lists={tmp_path}", reason="no objects_vocab.txt in")
    with pytest.raises(SystemExit):
        extract_regions.main([*command, "--shard=2/2"])


def test_rules_of_hugging_face(images, tmp_path):
    """The same weights with other rules give other regions, and the fingerprint says so."""
    write_detector(detector_case.tensors(), {}, tmp_path / "detector", "orbax")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "00000000.jpg").write_bytes((images / "00000000.jpg").read_bytes())
    found = {}
    for rules in ("caffe", "huggingface"):
        out = tmp_path / rules
        options = [f"--rules={rules}", "--format=json", "--fewest=4", "--most=4", "--proposals=8", f"--out={out}"]
        assert extract_regions.main([str(tmp_path / "one"), f"--detector={tmp_path / 'detector'}", *options]) == 0
        found[rules] = json.loads((out / "extraction.json").read_text()), (out / "00000000.json").read_text()
    (caffe, regions), (other, other_regions) = found.values()
    assert regions != other_regions and caffe["extractor"] != other["extractor"]
    caffe, other = caffe["fingerprint"], other["fingerprint"]
    assert caffe["weights"] == other["weights"]
    assert other["settings"]["rules"] == "huggingface" and "rules" not in caffe["settings"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_only_line_ends_end_a_line(character, images, tmp_path):
    table = tmp_path / "Train_GCC.tsv"
    for end in ("\n", "\r\n"):
        table.write_bytes(f"two dogs{character}playing\thttp://x/1{end}a cat\thttp://x/2{end}".encode())
        assert open_source(table).captions == (f"two dogs{character}playing", "a cat")
    (tmp_path / f"a{character}b.jpg").write_bytes(contents()["00000001.jpg"])
    (tmp_path / "list.txt").write_text(f"a{character}b.jpg\ntrain_image/00000001.jpg\n", "utf-8")
    assert open_source(tmp_path / "list.txt").paths == (f"a{character}b.jpg", "train_image/00000001.jpg")


def test_an_archive_that_cannot_be_read_is_no_list_of_broken_images(detector, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", contents()["00000001.jpg"])
    content = (tmp_path / "a.zip").read_bytes()
    at = content.index(b"PK\x01\x02") + 10  # compression method: 9, of Windows Explorer
    (tmp_path / "a.zip").write_bytes(content[:at] + b"\x09\x00" + content[at + 2 :])
    with pytest.raises(SourceError, match="a.zip: the zip archive cannot be read .1.jpg is compressed by method 9"):
        open_source(tmp_path / "a.zip")
    (tmp_path / "list.txt").write_text("a.zip@/1.jpg\n")
    with pytest.raises(SourceError, match="a.zip: the zip archive cannot be read"):
        extract_regions.extract(open_source(tmp_path / "list.txt"), detector, tmp_path / "out")


@pytest.mark.parametrize("names", [("DSC_0001", "IMG_0001"), ("a/1", "b/01"), ("beach1", "car")])
def test_two_images_of_one_number_are_refused_in_tables(names, detector, tmp_path):
    for name in names:
        (tmp_path / "photos" / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / f"{name}.png").write_bytes(contents()["00000001.jpg"])
    source = open_source(tmp_path / "photos")
    with pytest.raises(SourceError, match=f"{names[0]}.png and {names[1]}.png would both be image 1 of a table"):
        extract_regions.extract(source, detector, tmp_path / "out", form="tsv")
    assert not (tmp_path / "out").exists()
