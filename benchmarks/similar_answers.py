#!/usr/bin/env python3
"""Measure how often an answer that is given again to a similar question is wrong, at several thresholds (docs.answers).

    python benchmarks/similar_answers.py [--questions 3000] [--json FILE]

NarrativeQA has about 30 questions on each story, written by several people, so that some of them mean the same. All pairs of
questions on one story are compared. Two are taken for the same as `edge.grounding.answers` does it: a cosine of their vectors
over the threshold, and the same asking word, numbers and other words. Such a hit is false if the answers to the two differ:
if no answer to one has an F1 of 0.5 (as SQuAD counts it) with one to the other. People also give different answers to the
very same question, which the row "same text" shows: what is above it is due to the threshold.

Printed: pairs that are hits, the share of questions that would be answered again, and the share of hits that are false, with
words compared, and by the vectors alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from documents_quality import f1, normal
from question_sets import Question, read_set

THRESHOLDS = (0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98)
SAME_F1 = 0.5


def same_answer(one: Question, other: Question) -> bool:
    """Return whether two questions have an answer in common."""
    return max(f1(a, b) for a in one.answers for b in other.answers) >= SAME_F1


def rates(pairs: list[tuple[int, int]], questions: list[Question], n: int) -> dict[str, float]:
    """Return what pairs that count as the same would do."""
    false = sum(not same_answer(questions[i], questions[j]) for i, j in pairs)
    return {"pairs": len(pairs), "again": len({j for _, j in pairs}) / n, "false": false / len(pairs) if pairs else 0.0}


def measure(questions: list[Question]) -> dict[str, Any]:
    """Compare all pairs of questions on one story."""
    import edge
    from edge.grounding.relevance import asks_alike

    vectors = edge.embed([question.text for question in questions], truncate=True).vectors
    by_story: dict[int, list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        by_story[question.document].append(number)
    pairs = [pair for numbers in by_story.values() for pair in itertools.combinations(numbers, 2)]
    cosines = {(i, j): float(vectors[i] @ vectors[j]) for i, j in pairs}
    near = [pair for pair in pairs if cosines[pair] >= min(THRESHOLDS)]
    alike = [(i, j) for i, j in near if asks_alike(questions[i].text, questions[j].text)]
    same_text = [(i, j) for i, j in near if normal(questions[i].text) == normal(questions[j].text)]
    n = len(questions)
    return {
        "questions": n,
        "pairs": len(pairs),
        "same text": rates(same_text, questions, n),
        "thresholds": {
            f"{threshold:g}": {
                "with words": rates([pair for pair in alike if cosines[pair] >= threshold], questions, n),
                "vectors alone": rates([pair for pair in near if cosines[pair] >= threshold], questions, n),
            }
            for threshold in THRESHOLDS
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure how often an answer that is given again is wrong.")
    parser.add_argument("--questions", type=int, default=3000)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "edge-question-sets")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(list(read_set("narrativeqa", options.cache).questions[: options.questions]))
    print(f"{found['questions']} questions, {found['pairs']} pairs on one story\n")
    print("| threshold | hits | questions answered again | false hits | vectors alone: hits | false hits |")
    print("|---|---|---|---|---|---|")
    for threshold, row in found["thresholds"].items():
        one, two = row["with words"], row["vectors alone"]
        print(
            f"| {threshold} | {one['pairs']} | {one['again']:.1%} | {one['false']:.1%} | {two['pairs']} | {two['false']:.1%} |"
        )
    same = found["same text"]
    print(f"| same text | {same['pairs']} | {same['again']:.1%} | {same['false']:.1%} | | |")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
