#!/usr/bin/env python3
"""Try what edge does not do: reuse the keys and values of a passage at another position, behind other passages.

    python benchmarks/chunk_reuse.py [--questions 24] [--passages 4] [--model FILE.gguf] [--json FILE]

A KV cache holds a passage as it was computed behind what stood before it. Each passage is computed once behind the instructions
alone; its keys are then moved to another position (llama.cpp rotates them: `llama_memory_seq_add`), and the passages of a
question are put together:

glued       moved, and nothing computed again
link N      the first N tokens of each passage but the first are computed again, behind the passages before it (EPIC's AttnLink,
            arXiv 2410.15332; CacheBlend, arXiv 2405.16444, chooses such tokens one by one)
full        everything computed, which is what edge does

The answer of the full prompt, 24 tokens at temperature 0, is the text over which the ways are compared. Printed: the mean
Kullback-Leibler divergence from the full prompt's distributions in nats, the share of tokens whose likeliest is the same, and
the share of the prompt that is computed. A model that was trained for it (Block-Attention, arXiv 2409.15355) does better; none
is here.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
from numpy.typing import NDArray
from question_sets import read_set

from edge.citations import PREAMBLE

LINKS = (0, 8, 32, 64)
N_ANSWER = 24
PASSAGE_CHARS = 700
_FULL, _PART = 0, 1  # sequences
_silent = llama.llama_log_callback(lambda *_: None)  # held here as long as llama.cpp may call it


class Engine:
    """A model in llama.cpp with two sequences that share their cells."""

    def __init__(self, path: str, n_ctx: int = 4096) -> None:
        llama.llama_log_set(_silent, None)
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        self.vocab = llama.llama_model_get_vocab(self.model)
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = n_ctx
        params.n_seq_max, params.kv_unified = 2, True
        self.context = llama.llama_init_from_model(self.model, params)
        self.memory = llama.llama_get_memory(self.context)
        self.n_vocab = llama.llama_vocab_n_tokens(self.vocab)
        self.batch = llama.llama_batch_init(n_ctx, 0, 1)
        self.n_computed = 0
        if not llama.llama_memory_can_shift(self.memory):
            raise SystemExit("The positions of this model's cache cannot be moved.")

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the tokens of a text."""
        data = text.encode()
        buffer = (llama.llama_token * (len(data) + 8))()
        n = llama.llama_tokenize(self.vocab, data, len(data), buffer, len(buffer), False, special)
        return list(buffer[:n])

    def clear(self) -> None:
        """Empty the cache."""
        llama.llama_memory_clear(self.memory, True)
        self.n_computed = 0

    def compute(self, tokens: list[int], start: int, seq: int, n_logits: int = 0) -> NDArray[np.float64]:
        """Compute tokens from a position on, and return the log-probabilities after the last `n_logits` of them."""
        self.batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            self.batch.token[i], self.batch.pos[i] = token, start + i
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, seq
            self.batch.logits[i] = i >= len(tokens) - n_logits
        if tokens and llama.llama_decode(self.context, self.batch):
            raise SystemExit("llama.cpp could not compute a batch.")
        self.n_computed += len(tokens)
        rows = range(len(tokens) - n_logits, len(tokens))
        found = np.array([self._logits(row) for row in rows], np.float64).reshape(n_logits, self.n_vocab)
        found -= found.max(axis=1, keepdims=True)
        return found - np.log(np.exp(found).sum(axis=1, keepdims=True))

    def _logits(self, row: int) -> NDArray[np.float32]:
        pointer = llama.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.n_vocab,)).copy()


@dataclass
class Way:
    """What one way lost."""

    divergence: list[float] = field(default_factory=list)
    agreed: list[float] = field(default_factory=list)
    computed: list[float] = field(default_factory=list)

    def add(self, own: NDArray[np.float64], full: NDArray[np.float64], n_computed: int, n_prompt: int) -> None:
        """Add the distributions of an answer."""
        self.divergence.append(float((np.exp(full) * (full - own)).sum(axis=1).mean()))
        self.agreed.append(float((own.argmax(axis=1) == full.argmax(axis=1)).mean()))
        self.computed.append(n_computed / n_prompt)


def answer(engine: Engine, prompt: list[int]) -> list[int]:
    """Return the likeliest answer to a prompt, token by token."""
    engine.clear()
    row, position, found = engine.compute(prompt, 0, _FULL, 1), len(prompt), list[int]()
    while len(found) < N_ANSWER:
        token = int(row[0].argmax())
        if llama.llama_vocab_is_eog(engine.vocab, token):
            break
        found.append(token)
        row, position = engine.compute([token], position, _FULL, 1), position + 1
    return found


def joined(engine: Engine, begin: list[int], passages: list[list[int]], tail: list[int], n_link: int, n_rows: int) -> Any:
    """Return the distributions over the tail of a prompt that is put together, and how many of its tokens were computed."""
    engine.clear()
    engine.compute(begin, 0, _FULL)
    position, n_computed = len(begin), len(begin)
    for number, passage in enumerate(passages):
        n_again = min(n_link, len(passage)) if number else 0
        engine.compute(passage[:n_again], position, _FULL)
        # What a cache would hold: the passage behind the instructions alone.
        engine.compute([*begin, *passage], 0, _PART)
        llama.llama_memory_seq_rm(engine.memory, _PART, 0, len(begin) + n_again)
        llama.llama_memory_seq_add(engine.memory, _PART, 0, -1, position - len(begin))
        llama.llama_memory_seq_cp(engine.memory, _PART, _FULL, 0, -1)
        llama.llama_memory_seq_rm(engine.memory, _PART, 0, -1)
        position, n_computed = position + len(passage), n_computed + n_again
    rows = engine.compute(tail, position, _FULL, n_rows)
    return rows, n_computed + len(tail) - (n_rows - 1)


def passages_of(text: str) -> list[str]:
    """Return a story in passages."""
    found = [""]
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        if len(found[-1]) + len(sentence) > PASSAGE_CHARS:
            found.append("")
        found[-1] = f"{found[-1]} {sentence}".strip()
    return [one for one in found if one]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Reuse keys and values of passages at other positions.")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "edge-question-sets")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.model:
        raise SystemExit("Name a GGUF file: --model, or EDGE_TEST_MODEL.")
    stories, rng, engine = read_set("narrativeqa", options.cache), random.Random(options.seed), Engine(options.model)
    begin = engine.tokenize("<|im_start|>user\n", special=True) + engine.tokenize(f"{PREAMBLE}\n\n")
    end = engine.tokenize("<|im_end|>\n<|im_start|>assistant\n", special=True)
    ways = {n_link: Way() for n_link in LINKS}
    asked = rng.sample(list(stories.questions), 4 * options.questions)
    n_done = 0
    for question in asked:
        parts = passages_of(stories.documents[question.document])
        if len(parts) < options.passages or n_done == options.questions:
            continue
        texts = rng.sample(parts, options.passages)
        passages = [engine.tokenize(f"Passage:\n```\n{text}\n```\n\n") for text in texts]
        tail = engine.tokenize(question.text) + end
        prompt = [*begin, *(token for passage in passages for token in passage), *tail]
        said = answer(engine, prompt)
        if not said:
            continue
        engine.clear()
        full = engine.compute([*prompt, *said[:-1]], 0, _FULL, len(said))
        for n_link, way in ways.items():
            own, n_computed = joined(engine, begin, passages, [*tail, *said[:-1]], n_link, len(said))
            way.add(own, full, n_computed, len(prompt))
        n_done += 1
        print(f"question {n_done} of {options.questions}", file=sys.stderr)
    result = {
        "model": Path(options.model).name,
        "questions": n_done,
        "passages": options.passages,
        "ways": {
            ("glued" if not n_link else f"link {n_link}"): {
                "divergence": statistics.mean(way.divergence),
                "agreed": statistics.mean(way.agreed),
                "computed": statistics.mean(way.computed),
            }
            for n_link, way in ways.items()
        },
    }
    print(f"\n{n_done} questions, {options.passages} passages, {result['model']}\n")
    print("| | divergence, nats | same likeliest token | computed |\n|---|---|---|---|")
    for name, row in result["ways"].items():  # type: ignore[attr-defined]
        print(f"| {name} | {row['divergence']:.3f} | {row['agreed']:.1%} | {row['computed']:.0%} |")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
