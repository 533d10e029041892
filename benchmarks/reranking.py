#!/usr/bin/env python3
"""Try what edge does not do: put the passages that a search found in another order, by what a language model says of them.

    python benchmarks/reranking.py [--set narrativeqa] [--questions 60] [--by question] [--model NAME] [--json FILE]

For each question the passages of the hybrid search are scored by the model, in packs (`Assistant.score_batch`):

question    how likely the question is behind the passage, per token (Sachan et al., Improving Passage Retrieval with Zero-Shot
            Question Generation, 2022)
yes         how likely "yes" is, against "no", to whether the passage that is shown answers the question

Each order is measured alone and with the ranks of the search (`edge.documents.search.fuse`): the share of questions whose
document is among the first k (recall@k), the mean reciprocal rank, for how many questions the document moved up or down, and
the processor time of scoring for a question.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from question_sets import SETS, Question, number_of, read_set

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.documents import Passage

AT = (1, 3, 5)

Order = Callable[["Assistant", str, Sequence["Passage"]], list[float]]


def by_question(ai: Assistant, question: str, passages: Sequence[Passage]) -> list[float]:
    """Return how likely the question is behind each passage, per token."""
    items = [(f"Passage: {passage.text}\n\nQuestion:", [f" {question}"]) for passage in passages]
    found = dict(ai.score_batch(items, chat=False, by="mean"))
    return [found[number].best.mean for number in range(len(items))]


def by_yes(ai: Assistant, question: str, passages: Sequence[Passage]) -> list[float]:
    """Return how likely the model says that each passage answers the question."""
    items = [
        (f"Passage: {passage.text}\n\nQuestion: {question}\nDoes the passage answer the question?\nAnswer:", [" yes", " no"])
        for passage in passages
    ]
    found = dict(ai.score_batch(items, chat=False))
    return [found[number].probabilities[" yes"] for number in range(len(items))]


ORDERS: dict[str, Order] = {"question": by_question, "yes": by_yes}


def rank_of(question: Question, passages: Sequence[Passage]) -> int:
    """Return the rank of the document of a question, from 1; 0 if it is not there."""
    numbers = list(dict.fromkeys(number_of(passage.document) for passage in passages))
    return numbers.index(question.document) + 1 if question.document in numbers else 0


def measure(name: str, options: argparse.Namespace, ai: Assistant, folder: Path) -> dict[str, Any]:
    """Measure a question set."""
    from edge.documents import Collection
    from edge.documents.search import fuse

    questions = read_set(name, options.cache)
    asked = random.Random(options.seed).sample(list(questions.questions), min(options.questions, len(questions.questions)))
    ranks: dict[str, list[int]] = {}
    orders = {way: ORDERS[way] for way in options.orders or ORDERS}
    seconds = dict.fromkeys(orders, 0.0)
    with Collection.open("all", store=folder) as collection:
        collection.add(questions.write(folder / "files"))
        for number, question in enumerate(asked):
            hits = collection.search(question.text, options.candidates)
            ranks.setdefault("search", []).append(rank_of(question, hits))
            for way, order in orders.items():
                began = time.process_time()
                scores = order(ai, question.text, hits)
                seconds[way] += time.process_time() - began
                places = sorted(range(len(hits)), key=lambda place, scores=scores: -scores[place])  # type: ignore[misc]
                both = [place for place, _ in fuse([list(range(len(hits))), places])]
                ranks.setdefault(way, []).append(rank_of(question, [hits[place] for place in places]))
                ranks.setdefault(f"search and {way}", []).append(rank_of(question, [hits[place] for place in both]))
            print(f"\r{name}: {number + 1} of {len(asked)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {way: _row(found, ranks["search"], seconds.get(way, 0.0)) for way, found in ranks.items()}


def _row(ranks: list[int], before: list[int], seconds: float) -> dict[str, float]:
    n = len(ranks)
    moved = [(one or 1000) - (other or 1000) for one, other in zip(ranks, before, strict=True)]
    return {
        **{f"recall@{k}": sum(0 < rank <= k for rank in ranks) / n for k in AT},
        "mrr": sum(1 / rank for rank in ranks if rank) / n,
        "up": sum(one < 0 for one in moved),
        "down": sum(one > 0 for one in moved),
        "processor s": seconds / n,
    }


def main() -> None:
    """Measure and print."""
    import edge

    parser = argparse.ArgumentParser(description="Measure whether a language model puts passages into a better order.")
    parser.add_argument("--set", dest="sets", action="append", choices=list(SETS), help="one of them; all if left out")
    parser.add_argument("--by", dest="orders", action="append", choices=list(ORDERS), help="one order; all if left out")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--candidates", type=int, default=8, help="passages of a question")
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL", "smollm2-135m"))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "edge-question-sets")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = edge.load_settings({"kv.enabled": False})
    results = {}
    with edge.load(
        options.model, backend="llamacpp", context=4096, parallel=4, threads=options.threads, settings=settings
    ) as ai:
        for name in options.sets or list(SETS):
            with tempfile.TemporaryDirectory() as folder:
                results[name] = measure(name, options, ai, Path(folder))
            columns = list(results[name]["search"])
            print(f"\n{name}, {ai.model_name}\n\n| order | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
            for way, row in results[name].items():
                print(f"| {way} | " + " | ".join(f"{row[column]:.3g}" for column in columns) + " |")
    if options.json is not None:
        options.json.write_text(json.dumps({"model": options.model, "seed": options.seed, "sets": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
