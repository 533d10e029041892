#!/usr/bin/env python3
"""Measure the time to the first token of questions over one manual: cold, with what earlier questions left, and warmed.

    python benchmarks/documents_latency.py [--questions 50] [--ways cold arranged] [--warm 64] [--model NAME] [--json FILE]

The manual is the documentation of this project; a question is asked about each of some headings, none twice. Every question is
answered in four ways, with one token:

cold      nothing of an earlier prompt is reused
position  passages stand by document and position; what earlier prompts left in the KV cache is reused
arranged  passages stand in the order that edge chooses: that of an earlier prompt, as far as both have the same ones
warmed    as arranged, after `edge docs warm` and a restart: its blocks come from the disk

The first three take turns, so that a change of the machine's speed meets all of them, and have the KV cache on the disk, too.
All of it takes a quarter of an hour on two cores; --ways measures some of them.
Printed: median and 90th percentile of the time to the first token (search and tokenising included), tokens of the prompt, and
the share of them that was reused.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edge
from edge.documents import Collection, Passage
from edge.grounding.warming import note_start, starts_of, warm_start

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.reply import Reply

ROOT = Path(__file__).resolve().parent.parent
WAYS = ("cold", "position", "arranged", "warmed")
PAGES = ("kv.md", "chat.md", "python.md", "serve.md", "convert.md", "models.md", "latency.md", "bench.md")


@dataclass
class Way:
    """What the answers of one way took."""

    first_token_ms: list[float] = field(default_factory=list)
    n_prompt: list[int] = field(default_factory=list)
    n_reused: list[int] = field(default_factory=list)

    def add(self, reply: Reply, began: float) -> None:
        """Add a reply, whose question was asked at `began`, of `time.perf_counter`."""
        reply.wait()
        self.first_token_ms.append((time.perf_counter() - began) * 1000)
        self.n_prompt.append(reply.usage.n_prompt)
        self.n_reused.append(reply.usage.n_reused)

    def summary(self) -> dict[str, float]:
        """Return the figures that are printed."""
        times = sorted(self.first_token_ms)
        return {
            "median_ms": statistics.median(times),
            "p90_ms": times[int(len(times) * 0.9)],
            "n_prompt": statistics.mean(self.n_prompt),
            "reused": sum(self.n_reused) / sum(self.n_prompt),
        }


class Named:
    """A collection under another name, and without a folder: it remembers no orders but in memory."""

    def __init__(self, collection: Collection, name: str) -> None:
        self.name, self._collection = name, collection

    def search(self, question: str, k: int = 8) -> list[Passage]:
        """Return the nearest passages."""
        return self._collection.search(question, k)


def questions_of(collection: Collection, n: int, rng: random.Random) -> list[str]:
    """Return questions about headings of the manual, none twice."""
    headings = {
        passage.heading
        for document in collection.documents()
        for passage in collection.passages(document.document_id)
        if " > " in passage.heading
    }
    chosen = rng.sample(sorted(headings), min(n, len(headings)))
    return [
        f"What should I know about {heading.rpartition(' > ')[2].lower()} ({heading.partition(' > ')[0]})?"
        for heading in chosen
    ]


def ask(ai: Assistant, question: str, source: Any, space: str) -> Reply:
    """Ask for one token. What is asked cold leaves nothing behind that could push out what the others left."""
    cache: Any = "off" if space.startswith("cold") else "disk"
    return ai.generate(question, docs=source, cache_namespace=space, max_tokens=1, temperature=0, cache=cache)


def in_memory(ai: Assistant, collection: Collection, questions: list[str], names: list[str]) -> dict[str, Way]:
    """Return some of the first three ways."""
    ways = {name: Way() for name in WAYS[:3] if name in names}
    for number, question in enumerate(questions):
        sources: dict[str, Callable[[], tuple[Any, str]]] = {
            "cold": lambda n=number: (Named(collection, f"c{n}"), f"cold-{n}"),
            "position": lambda n=number: (Named(collection, f"p{n}"), "position"),
            "arranged": lambda: (Named(collection, "arranged"), "arranged"),
        }
        for name, way in ways.items():
            source, space = sources[name]()
            began = time.perf_counter()
            way.add(ask(ai, question, source, space), began)
        print(f"question {number + 1} of {len(questions)}", file=sys.stderr)
    return ways


def warmed(
    load: Callable[[], Assistant], collection: Collection, questions: list[str], most: int
) -> tuple[Way, dict[str, Any]]:
    """Return the fourth way, and what warming took."""
    starts, n_tokens, began = starts_of(collection, most), 0, time.perf_counter()
    with load() as ai:
        for start in starts:
            reply = warm_start(ai, collection, start)
            reply.wait()
            n_tokens += reply.usage.n_computed
            note_start(collection, start)
        ai.flush_cache()
    about = {"starts": len(starts), "n_tokens": n_tokens, "s": time.perf_counter() - began}
    way = Way()
    with load() as ai:
        for question in questions:
            began = time.perf_counter()
            way.add(ai.generate(question, docs=collection, max_tokens=1, temperature=0), began)
    return way, about


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the first token of questions over one manual.")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--warm", type=int, default=64)
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL", "smollm2-135m"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--pages", type=int, default=len(PAGES), help="pages of the manual; fewer for a try")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Collection.open("manual", store=Path(folder) / "documents") as collection:
        settings = edge.load_settings({"paths.cache_dir": f"{folder}/cache", "kv.enabled": True})
        report = collection.add([ROOT / "docs" / page for page in PAGES[: options.pages]])
        questions = questions_of(collection, options.questions, random.Random(options.seed))
        load = lambda: edge.load(options.model, cache="disk", context=4096, settings=settings)  # noqa: E731
        ways, warming = {}, None
        if {*options.ways} - {"warmed"}:
            with load() as ai:
                ask(ai, questions[0], Named(collection, "first"), "first").wait()  # loads the embedding model
                ways = in_memory(ai, collection, questions, options.ways)
        if "warmed" in options.ways:
            ways["warmed"], warming = warmed(load, collection, questions, options.warm)
        name = Path(options.model).name
    result = {
        "model": name,
        "passages": report.n_passages,
        "questions": len(questions),
        "warming": warming,
        "ways": {way: found.summary() for way, found in ways.items()},
    }
    print(f"\n{len(questions)} questions over {report.n_passages} passages, {name}; warming: {warming}\n")
    print("| | first token, median | 90th percentile | prompt tokens | reused |\n|---|---|---|---|---|")
    for way, row in result["ways"].items():  # type: ignore[attr-defined]
        print(f"| {way} | {row['median_ms']:.0f} ms | {row['p90_ms']:.0f} ms | {row['n_prompt']:.0f} | {row['reused']:.0%} |")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
