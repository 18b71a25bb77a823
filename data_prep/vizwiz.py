"""The files of VizWiz: questions of blind people about their photographs, ten answers each.

Source: https://vizwiz.org/tasks-and-datasets/vqa (CC BY 4.0). The folder `--source`:

    {train,val,test}.json                 or Annotations/{train,val,test}.json; each a list
    {train,val,test}/VizWiz_val_00028000.jpg      each folder may be a .zip

    python -m data_prep.build vizwiz --source=vizwiz --answers=3000 --regions=vizwiz/regions --features

An item is {"image", "question", "answers": [{"answer", "answer_confidence"}, ...], "answer_type", "answerable"}; test
has image and question alone. The `example_id` is the name of the image. `--answers=N` writes `CORPUS_answers.txt` as
for VQA v2: `<unk>` and the N-1 most frequent answers of train, "unanswerable" among them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator

from data_prep.json_lines import chosen_splits, field, read_json
from data_prep.manifest import SourceError, described
from data_prep.public_texts import Corpus, PublicExample, image_prefix
from data_prep.vqa_files import FEWEST_ANNOTATORS

SPLITS = ("train", "val", "test")


class VizWiz(Corpus):
    """The reader of VizWiz."""

    name, kind = "vizwiz", "answer"

    def __init__(self, source: str | pathlib.Path, splits: Iterable[str] = ()):
        self.root = pathlib.Path(source)
        super().__init__(source, chosen_splits(splits, SPLITS, self._file))

    def _file(self, split: str) -> pathlib.Path:
        name = f"{split}.json"
        below = self.root / "Annotations" / name
        return below if below.exists() else self.root / name

    def files(self) -> list[pathlib.Path]:
        """Return the files of the splits."""
        return [self._file(split) for split in self.splits]

    def examples(self, split: str) -> Iterator[PublicExample]:
        """Yield the questions of a split. Raises SourceError."""
        file, prefix = self._file(split), image_prefix(self.root, split)
        for index, item in enumerate(read_json(file, list)):
            place = f"{file}, item {index} (from 0)"
            if not isinstance(item, dict):
                raise SourceError(f"{place} is {described(item)}, not an object; download the file again")
            image, answers = field(item, "image", str, place), []
            if "answers" in item:
                answers = [field(answer, "answer", str, place) for answer in field(item, "answers", list, place)]
                if len(answers) < FEWEST_ANNOTATORS:
                    raise SourceError(
                        f"{place} has {len(answers)} of at least {FEWEST_ANNOTATORS} answers: the score compares each "
                        "annotator with the others; repeat the answers until there are ten"
                    )
            fields = dict(
                question_id=index, question=field(item, "question", str, place), answers=answers,
                answer_type=field(item, "answer_type", str, place) if answers else "",
            )  # fmt: skip
            yield PublicExample(image, place, (prefix + image,), fields)
