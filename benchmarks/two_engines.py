#!/usr/bin/env python3
"""Turns of a chat on one engine and on two: OpenVINO prefills, llama.cpp decodes (edge/backends/paired.py).

    python benchmarks/two_engines.py [--model smollm2-135m] [--threads 2] [--rounds 5] [--reply 128] [--prompt 256 1024]
        [--decode llamacpp] [--prefill openvino] [--json FILE]

Each way is a process of its own with an assistant that was loaded as ever. They take turns, a round forwards and the next one
backwards. A turn is a new message of about so many tokens, with nothing of it in the KV cache, and a reply of so many tokens,
greedy and not ended before. Medians over the rounds; the ratio is that of whole turns to those of the best single engine in the
same round. Drafts are off, since how many come true depends on the text.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

WORDS = ["the", "river", "runs", "over", "stones", "and", "under", "old", "bridges", "while", "people", "walk", "along", "it"]


@dataclass(frozen=True)
class Turn:
    """One turn: seconds to the first token and to the end, tokens that were prefilled, and the process's peak of memory."""

    way: str
    n_prompt: int
    first_token_s: float
    total_s: float
    n_computed: int
    peak_bytes: int


def serve(pipe: Connection, model: str, backend: str, prefill_with: str, threads: int | None) -> None:
    """Load a model and answer (way, tokens of the prompt, tokens of the reply, seed) until None comes."""
    import edge
    from edge.device.cost import peak_bytes
    from edge.types import Sampling

    settings = edge.load_settings({"engine.speculate": False, "governor.enabled": False})
    with edge.load(
        model, settings=settings, backend=backend, prefill_with=prefill_with, threads=threads, context=4096, cache="memory"
    ) as ai:
        tokenizer = ai._prompting.tokenizer  # replies are to be of one length
        ends = {token: float("-inf") for token in range(tokenizer.n_vocab) if tokenizer.is_end(token)}
        ai.generate("Hello.", max_tokens=4).wait()
        pipe.send(ai.plan.explain() if ai.plan is not None else "")
        while (asked := pipe.recv()) is not None:
            way, n_prompt, n_reply, seed = asked
            numbers = random.Random(seed)
            text = " ".join([f"Text {seed}:", *(numbers.choice(WORDS) for _ in range(n_prompt - 10))])
            reply = ai.generate(text, sampling=Sampling(temperature=0, max_tokens=n_reply, logit_bias=ends))
            reply.wait()
            times = reply.timing
            pipe.send(
                Turn(way, n_prompt, times.first_token_ms / 1000, times.total_ms / 1000, reply.usage.n_computed, peak_bytes())
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reply", type=int, default=128)
    parser.add_argument("--prompt", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--decode", default="llamacpp")
    parser.add_argument("--prefill", default="openvino")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    decode, prefill = arguments.decode, arguments.prefill
    ways = {decode: (decode, "off"), prefill: (prefill, "off"), f"{prefill} + {decode}": (decode, prefill)}
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for way, (backend, other) in ways.items():
        pipes[way], theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, arguments.model, backend, other, arguments.threads), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        receipt = pipes[way].recv()
        print(f"{way}: " + "; ".join(line for line in receipt.splitlines() if line.startswith(("prefill ", "memory"))))
    turns: list[Turn] = []
    for number in range(arguments.rounds):
        order = list(ways) if number % 2 == 0 else list(reversed(ways))
        for n_prompt in arguments.prompt:
            for way in order:
                pipes[way].send((way, n_prompt, arguments.reply, 1000 * number + n_prompt))
                turns.append(pipes[way].recv())
    for way, process in zip(ways, processes, strict=True):
        pipes[way].send(None)
        process.join(30)
    report(turns, list(ways), arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([asdict(turn) for turn in turns], indent=1), "utf-8")


def report(turns: list[Turn], ways: list[str], arguments: Any) -> None:
    """Print a table."""
    print(f"\n{'prompt':>7} {'engine':24} {'first token, s':>15} {'turn, s':>9} {'to the best alone':>18} {'memory, MB':>11}")
    for n_prompt in arguments.prompt:
        by_way = {way: [turn for turn in turns if (turn.way, turn.n_prompt) == (way, n_prompt)] for way in ways}
        best = min(ways[:2], key=lambda way: statistics.median(turn.total_s for turn in by_way[way]))
        for way, taken in by_way.items():
            ratios = [ours.total_s / theirs.total_s for ours, theirs in zip(taken, by_way[best], strict=True)]
            print(
                f"{statistics.median(turn.n_computed for turn in taken):>7.0f} {way:24} "
                f"{statistics.median(turn.first_token_s for turn in taken):>15.3f} "
                f"{statistics.median(turn.total_s for turn in taken):>9.3f} "
                f"{statistics.median(ratios):>8.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
                f"{max(turn.peak_bytes for turn in taken) / 1e6:>9,.0f}"
            )


if __name__ == "__main__":
    main()
