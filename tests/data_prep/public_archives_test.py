"""Test that the images of public tasks may be in an archive, and that texts of missing images may be skipped."""

import json
import shutil

from data_prep import build
from tests.helpers.golden_folders import task_folders
from tests.helpers.vqa_case import read_all, zip_folder


def images_of(source, data_dir):
    assert build.main(["gqa", f"--source={source}", f"--data_dir={data_dir}", "--splits=testdev"]) == 0
    return read_all(next((data_dir / "gqa_images/gqa").glob("*.*.*")), "images")


def test_an_archive_in_place_of_a_folder_gives_the_same_images(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(task_folders("gqa")[0], source)
    (source / "images").chmod(0o755)
    plain = images_of(source, tmp_path / "plain")
    zip_folder(source / "images")
    packed = images_of(source, tmp_path / "packed")
    assert [image["image_id"] for image in packed] == [f"images.zip@/{image['image_id']}" for image in plain]
    assert [image["image"] for image in packed] == [image["image"] for image in plain]


def test_texts_of_missing_images_are_skipped_if_asked(tmp_path, capsys):
    folder, source = task_folders("nlvr2")[0], tmp_path / "source"
    shutil.copytree(folder, source)
    items = [json.loads(line) for line in (source / "data/dev.json").read_text().splitlines()]
    pair = items[0]["identifier"].rpartition("-")[0]
    (source / "images/dev").chmod(0o755)
    (source / f"images/dev/{pair}-img1.png").unlink()
    command = ["nlvr2", f"--source={source}", f"--data_dir={tmp_path}", "--splits=dev"]
    assert build.main(command) == 2
    assert build.main([*command, "--drop_missing"]) == 0
    table = next((tmp_path / "nlvr2/nlvr2").glob("*.*.*"))
    records = [*read_all(table, "dev_landscape"), *read_all(table, "dev_portrait")]
    kept = {item["identifier"] for item in items if item["identifier"].rpartition("-")[0] != pair}
    assert {record["example_id"] for record in records} == kept
    images = read_all(next((tmp_path / "nlvr2_images/nlvr2").glob("*.*.*")), "images")
    for record in records:
        names = [images[number]["image_id"] for number in record["image_numbers"]]
        stem = record["example_id"].rpartition("-")[0]
        assert names == [f"images/dev/{stem}-img{side}.png" for side in range(2)]
    problems = json.loads((table / "manifest.json").read_text())["problems"]
    assert len(problems) == len(items) - len(kept) and {problem["action"] for problem in problems} == {"skipped"}
    capsys.readouterr()
    assert build.main([*command, "--drop_missing", "--no_images"]) == 2
    assert "--drop_missing looks for the images" in capsys.readouterr().err
    shutil.rmtree(source / "images/dev")
    assert build.main([*command, "--drop_missing", "--corpus=other"]) == 2
    assert "-img0.png and all other images are missing in" in capsys.readouterr().err
