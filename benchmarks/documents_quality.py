#!/usr/bin/env python3
"""Measure how well documents are found and answered from: recall, MRR, and answers with and without retrieval.

    python benchmarks/documents_quality.py [--set narrativeqa] [--questions 500] [--answers 40] [--model NAME] [--json FILE]

For each question set: its documents are added to a collection; each of some questions, chosen by the seed, is searched by
words, by meaning and by both. Printed: the share of questions whose document is among the first k passages (recall@k), the mean
reciprocal rank of its first passage among ten, and the share of those whose answer, word for word, is in the first six.

found: a collection with half of the documents is asked about all of them. Printed: how often something counts as found for
questions that it can answer and for those about the other half, at several thresholds, and the area under the curve.

answers: the model answers some questions in a few words at temperature 0: from what it knows, from what was found, and from
the document that has the answer. Printed: exact match and F1 as SQuAD counts them, and the share of answers that contain a
right one. A small model knows little and copies poorly: compare the columns, not the sets.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import string
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from question_sets import SETS, Question, QuestionSet, number_of, read_set

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.documents import Collection

DEPTH = 10
AT = (1, 3, 5, 10)
IN_PROMPT = 6
THRESHOLDS = (0.6, 0.7, 0.8, 0.85, 0.9, 1.0, 1.1)
SYSTEM = "Answer the question in a few words, without a sentence around them."


def normal(text: str) -> list[str]:
    """Return the words of an answer as SQuAD compares them."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1(answer: str, right: str) -> float:
    """Return the F1 of the words of an answer."""
    said, wanted = normal(answer), normal(right)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def contains(text: str, right: str) -> bool:
    """Return whether a text has the words of an answer, one after another."""
    wanted = " ".join(normal(right))
    return bool(wanted) and f" {wanted} " in f" {' '.join(normal(text))} "


def search(collection: Collection, questions: list[Question]) -> dict[str, dict[str, float]]:
    """Return recall and rank of each way to search."""
    result: dict[str, dict[str, float]] = {}
    for how in ("words", "meaning", "hybrid"):
        ranks, has_answer = [], []
        began = time.perf_counter()
        for question in questions:
            found = collection.search(question.text, DEPTH, how)  # type: ignore[arg-type]
            order = list(dict.fromkeys(number_of(passage.document) for passage in found))
            ranks.append(order.index(question.document) + 1 if question.document in order else 0)
            if question.answers:
                text = " ".join(passage.text for passage in found[:IN_PROMPT])
                has_answer.append(any(contains(text, answer) for answer in question.answers))
        result[how] = {f"recall@{k}": sum(0 < rank <= k for rank in ranks) / len(ranks) for k in AT}
        result[how]["mrr@10"] = sum(1 / rank for rank in ranks if rank) / len(ranks)
        result[how]["answer@6"] = sum(has_answer) / max(1, len(has_answer))
        result[how]["ms"] = (time.perf_counter() - began) * 1000 / len(questions)
    return result


def found_or_not(questions: QuestionSet, asked: list[Question], folder: Path, rng: random.Random) -> dict[str, Any]:
    """Return how well relevance tells questions that a collection can answer from those that it cannot."""
    from edge.documents import Collection
    from edge.grounding.choose import MIN_RELEVANCE, MOST_PASSAGES
    from edge.grounding.relevance import relevance

    half = sorted(rng.sample(range(len(questions.documents)), len(questions.documents) // 2))
    ratings: dict[bool, list[float]] = {True: [], False: []}
    with Collection.open("half", store=folder) as collection:
        collection.add(questions.write(folder / "half-files", half))
        for question in asked:
            hits = collection.search(question.text, MOST_PASSAGES)
            best = max((relevance(question.text, hit.text, hit.similarity) for hit in hits), default=0.0)
            ratings[question.document in set(half)].append(best)
    can, cannot = ratings[True], ratings[False]
    above = sum((a > b) + 0.5 * (a == b) for a in can for b in cannot)
    rates = {
        f"{threshold:g}": {
            "can": sum(one >= threshold for one in can) / len(can),
            "cannot": sum(one >= threshold for one in cannot) / len(cannot),
        }
        for threshold in sorted({*THRESHOLDS, MIN_RELEVANCE})
    }
    return {"auc": above / (len(can) * len(cannot)), "threshold": MIN_RELEVANCE, "found": rates}


def answers(ai: Assistant, collection: Collection, questions: QuestionSet, asked: list[Question]) -> dict[str, Any]:
    """Return how well the model answers from what it knows, from what is found, and from the right document."""
    result: dict[str, Any] = {}
    for way in ("without", "retrieved", "document"):
        exact, words, within, n_found, n_prompt = [], [], [], 0, 0
        for question in asked:
            prompt = question.text
            if way == "document":
                prompt = f"{questions.documents[question.document]}\n\n{question.text}"
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
            docs = [collection] if way == "retrieved" else []
            reply = ai.generate(messages, docs=docs, temperature=0, max_tokens=32, max_repeats=0)
            said = re.sub(r"\[\d+\]", "", reply.wait())
            n_found += bool(reply.citations)
            n_prompt += reply.usage.n_prompt
            exact.append(max(normal(said) == normal(answer) for answer in question.answers))
            words.append(max(f1(said, answer) for answer in question.answers))
            within.append(max(contains(said, answer) for answer in question.answers))
        n = len(asked)
        result[way] = {"exact": sum(exact) / n, "f1": sum(words) / n, "contains": sum(within) / n, "tokens": n_prompt / n}
        if way == "retrieved":
            result[way]["found"] = n_found / n
        print(f"  answers {way}: {result[way]}", file=sys.stderr)
    return result


def measure(name: str, options: argparse.Namespace, ai: Assistant | None, folder: Path) -> dict[str, Any]:
    """Measure a question set."""
    from edge.documents import Collection

    questions, rng = read_set(name, options.cache), random.Random(options.seed)
    asked = rng.sample(list(questions.questions), min(options.questions, len(questions.questions)))
    with Collection.open("all", store=folder) as collection:
        began = time.perf_counter()
        report = collection.add(questions.write(folder / "files"))
        result: dict[str, Any] = {
            "documents": len(questions.documents),
            "passages": report.n_passages,
            "questions": len(asked),
            "add_s": time.perf_counter() - began,
            "search": search(collection, asked),
        }
        result["relevance"] = found_or_not(questions, asked, folder, rng)
        if ai is not None:
            with_answer = [question for question in asked if question.answers][: options.answers]
            result["answers"] = answers(ai, collection, questions, with_answer)
    return result


def show(name: str, result: dict[str, Any]) -> None:
    """Print a question set as the tables of docs/documents.md."""
    print(f"\n{name}: {result['documents']} documents, {result['passages']} passages, {result['questions']} questions\n")
    columns = list(next(iter(result["search"].values())))
    print("| search | " + " | ".join(columns) + " |\n|---" * 1 + "|---" * len(columns) + "|")
    for how, row in result["search"].items():
        print(
            f"| {how} | "
            + " | ".join(f"{row[column]:.3f}" if column != "ms" else f"{row[column]:.1f}" for column in columns)
            + " |"
        )
    print(f"\narea under the curve of found: {result['relevance']['auc']:.3f}\n")
    print("| threshold | found, can answer | found, cannot |\n|---|---|---|")
    for threshold, row in result["relevance"]["found"].items():
        print(f"| {threshold} | {row['can']:.3f} | {row['cannot']:.3f} |")
    if "answers" in result:
        print("\n| answers | exact | F1 | contains | prompt tokens |\n|---|---|---|---|---|")
        for way, row in result["answers"].items():
            print(f"| {way} | {row['exact']:.3f} | {row['f1']:.3f} | {row['contains']:.3f} | {row['tokens']:.0f} |")


def main() -> None:
    """Measure and print."""
    import edge

    parser = argparse.ArgumentParser(description="Measure how well documents are found and answered from.")
    parser.add_argument("--set", dest="sets", action="append", choices=list(SETS), help="one of them; all if left out")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--answers", type=int, default=40, help="questions that the model answers; 0 loads no model")
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL", "smollm2-135m"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "edge-question-sets")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = edge.load_settings({"kv.enabled": False})
    ai = edge.load(options.model, context=4096, settings=settings) if options.answers else None
    results = {}
    try:
        for name in options.sets or list(SETS):
            with tempfile.TemporaryDirectory() as folder:
                results[name] = measure(name, options, ai, Path(folder))
            show(name, results[name])
    finally:
        if ai is not None:
            ai.close()
    if options.json is not None:
        options.json.write_text(json.dumps({"model": options.model, "seed": options.seed, "sets": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
