"""Read the records of a built corpus."""

import tensorflow_datasets as tfds


def read_all(directory, split):
    return list(tfds.builder_from_directory(directory).as_data_source(split))


def words_of(record):
    return [word.decode() for word in record["caption"]]


def open_lines(path):
    return path.read_text().splitlines()
