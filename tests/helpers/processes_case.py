"""A table of small images for builds by several processes, which import this file."""

import os
import signal
import time

import numpy as np

from data_prep.image_table import GridRegions, ImageTable

NUMBER, SIZE = 30, 8  # images, and images of a part
GRAY = (3, 17, 29)  # images that are not RGB and have a bad box; the manifest counts the former and lists the latter


class Regions(GridRegions):
    """A grid, in some images with a box without area."""

    def boxes(self, size):
        boxes = super().boxes(size)
        return np.concatenate([boxes, [[5, 5, 5, 5]]]).astype(np.float32) if size[1] - 20 in GRAY else boxes


def image_table(photos, data_dir) -> ImageTable:
    images = {f"{i}.jpg": f"train.jsonl, line {i + 1}" for i in range(NUMBER)}
    table = ImageTable("photos_images", "c", data_dir, photos, images, Regions())
    table.MOST = SIZE  # pyright: ignore[reportAttributeAccessIssue]
    return table


class Dying(ImageTable, skip_registration=True):
    """A table whose last image ends the process that reads it, as the kernel does when memory runs out."""

    def make(self, item):
        if item[0] == NUMBER - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make(item)


class Slow(ImageTable, skip_registration=True):
    """A table whose later images take time; a file names each process that reads them."""

    def make(self, item):
        if item[0] >= 2 * SIZE:
            (self.files.root.parent / "pids" / str(os.getpid())).touch()
            time.sleep(0.4)
        return super().make(item)
