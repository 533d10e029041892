#!/usr/bin/env python3
"""Measure scoring: prompts a second with a shared prefix, side by side, against one at a time and against transformers.

    EDGE_TEST_MODEL=model.gguf python benchmarks/scoring.py [--prompts 48] [--prefix 500] [--parallel 8] [--rounds 3]
        [--choices good,bad] [--transformers] [--json FILE]

Each prompt is a shared text of about --prefix tokens (instructions and examples of a classifier), a review of its own, and the
choices "good" and "bad", or longer ones (--choices). The ways, which alternate in every round:

- batch: `Assistant.score_batch`, the shared prefix computed once;
- one at a time: `Assistant.score` for each, which finds the prefix in the KV cache, its choices in a pack;
- token by token: the same without packs, as it was before there were any: a pass for each token, and for each prompt;
- naive: each prompt with each choice computed from its first token, as without a KV cache;
- transformers: the same weights, dequantised to float32, on as many threads, each prompt with its choices as a batch; only with
  --transformers.

Processor seconds are those of all threads: other work on the machine does not count. The largest difference between logprobs
of the ways is printed, too: their kernels round differently.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge import Assistant

CHOICES = ["good", "bad"]
CACHED = ("batch", "one at a time", "token by token")  # ways that find the prefix in the KV cache
WORDS = ["room", "breakfast", "staff", "view", "bed", "bath", "pool", "noise", "price", "garden", "lift", "harbour"]
TONES = ["was better than we hoped", "was a disappointment", "could not have been kinder", "was dirty and far too loud"]

Scores = dict[int, list[float]]


def texts(ai: Assistant, n_prompts: int, n_prefix: int) -> list[str]:
    """Return prompts that begin alike."""
    prefix = "Say whether the review of a hotel is good or bad. Answer with one word.\n\n"
    number = 0
    while ai.count_tokens(prefix) < n_prefix:
        word, tone = WORDS[number % len(WORDS)], TONES[number % len(TONES)]
        prefix += f"Review: The {word} of house {number} {tone}.\nAnswer: {CHOICES[number % len(CHOICES)]}\n"
        number += 1
    return [
        f"{prefix}Review: On day {number} the {WORDS[number % len(WORDS)]} {TONES[number % len(TONES)]}.\nAnswer:"
        for number in range(n_prompts)
    ]


def batch(ai: Assistant, prompts: list[str]) -> Scores:
    """Score all prompts together."""
    from edge import Scored

    found = dict(ai.score_batch([(prompt, [f" {choice}" for choice in CHOICES]) for prompt in prompts], chat=False))
    return {number: [one.logprob for one in scored.choices] for number, scored in found.items() if isinstance(scored, Scored)}


def one_at_a_time(ai: Assistant, prompts: list[str]) -> Scores:
    """Score one prompt after another."""
    scores = (ai.score(prompt, [f" {choice}" for choice in CHOICES], chat=False) for prompt in prompts)
    return {number: [one.logprob for one in scored.choices] for number, scored in enumerate(scores)}


def token_by_token(ai: Assistant, prompts: list[str]) -> Scores:
    """Score one prompt after another, without packs."""
    packer = ai._turns._scheduler._packer
    most, packer._most = packer._most, 0
    try:
        return one_at_a_time(ai, prompts)
    finally:
        packer._most = most


def naive(ai: Assistant, prompts: list[str]) -> Scores:
    """Compute every prompt with every choice from its first token: a namespace of its own keeps each from what is cached."""
    found: Scores = {}
    for number, prompt in enumerate(prompts):
        found[number] = []
        for index, choice in enumerate(CHOICES):
            space = f"n{time.monotonic_ns()}-{number}-{index}"
            found[number].append(ai.score(prompt, [f" {choice}"], chat=False, cache="off", cache_namespace=space).best.logprob)
    return found


def with_transformers(path: Path, n_threads: int) -> Callable[[list[str]], Scores]:
    """Return a function that scores with transformers: one prompt with its choices at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(n_threads)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model.train(False)

    def score(prompts: list[str]) -> Scores:
        found: Scores = {}
        for number, prompt in enumerate(prompts):
            head = tokenizer(prompt)["input_ids"]
            tails = [tokenizer(f" {choice}", add_special_tokens=False)["input_ids"] for choice in CHOICES]
            longest = max(map(len, tails))
            rows = torch.tensor([head + tail + [tail[-1]] * (longest - len(tail)) for tail in tails])
            with torch.inference_mode():
                logits = model(rows).logits[:, len(head) - 1 :].log_softmax(-1)
            found[number] = [
                sum(float(logits[row, place, token]) for place, token in enumerate(tail)) for row, tail in enumerate(tails)
            ]
        return found

    return score


def difference(one: Scores, other: Scores) -> float:
    """Return the largest difference between two ways' logprobs."""
    return max(abs(a - b) for number in one for a, b in zip(one[number], other[number], strict=True))


def main() -> None:
    """Measure and print."""
    import edge

    parser = argparse.ArgumentParser(description="Measure scoring with a shared prefix.")
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL", "smollm2-135m"))
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--prefix", type=int, default=500)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--choices", default="good,bad", type=lambda text: text.split(","))
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    CHOICES[:] = options.choices
    settings = edge.load_settings({"kv.enabled": False})
    with edge.load(
        options.model, backend="llamacpp", context=4096, parallel=options.parallel, threads=options.threads, settings=settings
    ) as ai:
        prompts = texts(ai, options.prompts, options.prefix)
        n_threads = ai.plan.n_threads if ai.plan is not None else 1
        ways: dict[str, Callable[[list[str]], Scores]] = {
            "batch": lambda prompts: batch(ai, prompts),
            "one at a time": lambda prompts: one_at_a_time(ai, prompts),
            "token by token": lambda prompts: token_by_token(ai, prompts),
            "naive": lambda prompts: naive(ai, prompts),
        }
        if options.transformers:
            ways["transformers"] = with_transformers(Path(options.model), n_threads)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        processor: dict[str, list[float]] = {name: [] for name in ways}
        scores: dict[str, Scores] = {}
        n_round = 0
        for n_round in range(options.rounds):
            for name, way in ways.items():
                asked = [f"{n_round} {name}: {prompt}" if name in CACHED else prompt for prompt in prompts]
                began, began_cpu = time.perf_counter(), time.process_time()
                found = way(asked)
                seconds[name].append((time.perf_counter() - began) / len(prompts))
                processor[name].append((time.process_time() - began_cpu) / len(prompts))
                print(f"round {n_round + 1}: {name:14} {1 / seconds[name][-1]:8.2f} prompts a second", file=sys.stderr)
                if n_round == options.rounds - 1:
                    scores[name] = way(prompts) if name in CACHED else found
        rates = {name: 1 / statistics.median(times) for name, times in seconds.items()}
        result: dict[str, Any] = {
            "model": ai.model_name,
            "n_prompt": ai.count_tokens(prompts[0]),
            "n_prefix": ai.count_tokens(prompts[0].rpartition("Review:")[0]),
            "n_threads": n_threads,
            "parallel": options.parallel,
            "prompts_per_s": rates,
            "batch_against": {name: rates["batch"] / rate for name, rate in rates.items() if name != "batch"},
            "processor_s_a_prompt": {name: statistics.median(times) for name, times in processor.items()},
            "largest_difference": {
                name: difference(scores["batch"], found) for name, found in scores.items() if name != "batch"
            },
        }
    print(json.dumps(result, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
