"""The files of OK-VQA: questions about images of COCO that need outside knowledge, in the form of VQA.

Source: https://okvqa.allenai.org (terms not stated; images: their owners'). The folder `--source`:

    OpenEnded_mscoco_{train2014,val2014}_questions.json
    mscoco_{train2014,val2014}_annotations.json
    {train2014,val2014}/COCO_val2014_000000000042.jpg          each folder may be a .zip

    python -m data_prep.build ok_vqa --source=okvqa --answers=2000 --regions=okvqa/regions --features

train has 9,009 questions and val, which serves as test, 5,046; the five annotators' answers are there twice.
`--answers=N` writes `CORPUS_answers.txt` as for VQA v2: `<unk>` and the N-1 most frequent answers of train."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator

from data_prep.json_lines import chosen_splits
from data_prep.manifest import SourceError
from data_prep.public_texts import Corpus, PublicExample, image_prefix
from data_prep.vqa_files import read_question_files

SPLITS = dict(train="train2014", val="val2014")


class OKVQA(Corpus):
    """The reader of OK-VQA."""

    name, kind = "ok_vqa", "answer"

    def __init__(self, source: str | pathlib.Path, splits: Iterable[str] = ()):
        self.root = pathlib.Path(source)
        super().__init__(source, chosen_splits(splits, SPLITS, self._file))
        for split in self.splits:
            for path in (self._file(split), self._annotations(split)):
                if not path.is_file():
                    raise SourceError(f"{path}: the file does not exist; download it, or omit {split} from --splits")

    def _file(self, split: str) -> pathlib.Path:
        return self.root / f"OpenEnded_mscoco_{SPLITS[split]}_questions.json"

    def _annotations(self, split: str) -> pathlib.Path:
        return self.root / f"mscoco_{SPLITS[split]}_annotations.json"

    def files(self) -> list[pathlib.Path]:
        """Return the files of questions and annotations."""
        return [path(split) for path in (self._file, self._annotations) for split in self.splits]

    def examples(self, split: str) -> Iterator[PublicExample]:
        """Yield the questions of a split. Raises SourceError."""
        image_set = SPLITS[split]
        prefix = image_prefix(self.root, image_set)
        for question in read_question_files(self._file(split), self._annotations(split)):
            path = f"{prefix}COCO_{image_set}_{question.image_id:012d}.jpg"
            fields = dict(
                question_id=question.question_id, question=question.text, answers=list(question.answers),
                answer_type=question.answer_type,
            )  # fmt: skip
            name = str(question.question_id)
            yield PublicExample(name, f"{self._file(split)}, question_id {name}", (path,), fields)
