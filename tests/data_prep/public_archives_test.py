"""Test that the images of public tasks may be in an archive."""

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
