"""Tables at an address (gs://, s3://): what builders do where `data_dir` is a mirror (vlbert_jax/storage/mirror.py).

The objects of an unfinished table have the names of the files of a folder (parts.py), and become those of the table by
copies within the storage. A table counts when its manifest.json is stored, which is stored last."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import shutil
from collections.abc import Iterator, Mapping

from data_prep.manifest import SourceError, read_object
from vlbert_jax.files import is_address
from vlbert_jax.storage.data import local_source
from vlbert_jax.storage.mirror import StoredParts, bucket_of, mirrored

MANIFEST = "manifest.json"
RECORDS = ".array_record-"  # in the names of files of records


def stored_parts(folder: pathlib.Path) -> StoredParts:
    """Return the parts of the unfinished table in a folder."""

    def files_of(part: str) -> list[str]:
        about = read_object(folder / "parts" / f"{part}.json", "remove this file", "records")
        return [f"{part}.{split}" for split in about["records"]]

    return StoredParts(folder, "parts/build.json", files_of)


def fetch_table(directory: pathlib.Path) -> None:
    """Copy a table without its records from the address; one that is not complete there is deleted from the mirror.

    Raises StorageError."""
    if not (bucket := bucket_of(directory)):
        return
    shutil.rmtree(directory, ignore_errors=True)
    sizes = bucket.sizes()
    if MANIFEST in sizes:
        bucket.download({name: size for name, size in sizes.items() if RECORDS not in name}, directory)
        stored_parts(_unfinished(directory)).delete()  # what a killed command has left


def fetch_records(directory: pathlib.Path) -> None:
    """Copy the records of a table from the address. Raises StorageError."""
    if bucket := bucket_of(directory):
        bucket.download({name: size for name, size in bucket.sizes().items() if RECORDS in name}, directory)


def store_table(folder: pathlib.Path, directory: pathlib.Path, names: Mapping[str, str]) -> None:
    """Complete a table at the address; another machine may do the same at once.

    Args:
      folder: the folder of the parts, with all files of the table but the records.
      directory: the directory of the table.
      names: names of the files of records, in the folder and in the table.

    Raises:
      SourceError: the records of a part are not at the address.
      StorageError: the bucket cannot be written.
    """
    if not (target := bucket_of(directory)):
        return
    parts = stored_parts(folder)
    small = [path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST]
    target.delete(target.sizes().keys() - {*names.values(), *small, MANIFEST})  # of another build, which was killed
    try:
        bucket_of(folder).copy_to(target, names)
    except FileNotFoundError as error:
        if MANIFEST in target.sizes():  # another machine has completed it
            return
        raise SourceError(f"{error}, which is listed in {folder / 'parts'}; remove {folder}, and build again") from None
    target.upload(folder, small)
    target.upload(folder, [MANIFEST])
    parts.delete()


def _unfinished(directory: pathlib.Path) -> pathlib.Path:
    return directory.with_name(f"incomplete.{directory.name}")


# --- The options of a command ---------------------------------------------------------------------


@contextlib.contextmanager
def local_places(args: argparse.Namespace, output: str = "data_dir", lists: tuple[str, ...] = ()) -> Iterator[None]:
    """Replace addresses among the options by folders on local disk.

    What is read is copied there before the command; what is written is stored at the address meanwhile.

    Args:
      args: options of a command.
      output: name of the option that is written to.
      lists: suffixes of files that name other files of their folder.

    Raises:
      SourceError: a detector would write regions next to images at an address.
      StorageError, ValueError: an address cannot be read, written or used.
    """
    for name, value in vars(args).items():
        if name in (output, "detector") or not isinstance(value, str) or not is_address(value):
            continue
        if output == "data_dir" and getattr(args, "detector", ""):
            raise SourceError(
                f"--detector writes regions next to the images, which are at {value}; first run "
                "data_prep.extract_regions with --out=ADDRESS, then this command with --regions=ADDRESS"
            )
        setattr(args, name, ",".join(local_source(part, lists) for part in value.split(",")))
    place, number = getattr(args, output), "{}/{}".format(*args.shard)
    with mirrored(place, number) as folder:
        setattr(args, output, str(folder))
        yield
