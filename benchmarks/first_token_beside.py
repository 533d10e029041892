#!/usr/bin/env python3
"""Measure the first token of a short message while another conversation prefills 4,000 tokens.

    python benchmarks/first_token_beside.py [--model int4.gguf] [--rounds 11] [--tokens 4000] [--json FILE]

Each round sends a long message that nobody has sent before and, once its first chunk is computed, "hi" in another conversation.
Printed are medians and the range over the rounds, with nothing beside and beside the long message:

  first token    from `send` to the first text
  to scheduler   of that, until the prompt was handed to the scheduler: template, tokenizer, and waiting for them
  queue          of that, until the scheduler gave it a sequence
  rest           prefill and the first decode step; beside another prompt they wait for its chunks
  long, %        of the long prompt that was prefilled before the first token; 100 where the short one waited for all of it
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

WORDS = ("river", "stone", "bridge", "people", "walk", "under", "old", "while", "water", "light", "over", "quiet", "and")
NAMES = ("first token", "to scheduler", "queue", "rest", "long, %")


def long_text(ai: Any, number: int, n_tokens: int) -> str:
    """Return a text of about `n_tokens` tokens with another beginning each round, so that nothing of it is in the KV cache."""
    words = [f"{number}:"] + [WORDS[(n * n + number * n) % len(WORDS)] for n in range(n_tokens)]
    share = n_tokens / ai.count_tokens(" ".join(words))
    return " ".join(words[: int(len(words) * share)])


def ask(ai: Any, text: str, long: Any = None) -> dict[str, float]:
    """Measure one short message in a new conversation in milliseconds, and the share of the long prompt prefilled before it."""
    conversation = ai.conversation()
    started = time.perf_counter()
    reply = conversation.send(text)
    next(iter(reply))
    first_ms = (time.perf_counter() - started) * 1000
    long_share = 100 * long.progress[0] / long.progress[1] if long else 0.0
    reply.wait()
    timing = reply.timing
    rest = first_ms - timing.tokenize_ms - timing.queue_ms
    return dict(zip(NAMES, (first_ms, timing.tokenize_ms, timing.queue_ms, rest, long_share), strict=True))


def ask_beside(ai: Any, number: int, n_tokens: int) -> dict[str, float]:
    """Call `ask` while another conversation prefills."""
    with ai.conversation().send(long_text(ai, number, n_tokens)) as long:
        while not 64 <= long.progress[0] < long.progress[1]:
            if long.is_done:
                raise SystemExit(f"The long message ended early: {long.error or long.finish_reason}")
            time.sleep(0.0005)
        # Another text each time: a text seen before is not tokenised again.
        return ask(ai, f"hi {number}", long)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL"), help="a GGUF, or a name of the catalogue")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--tokens", type=int, default=4000, help="of the long message")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    if not options.model:
        parser.error("give --model, or set EDGE_TEST_MODEL")
    import edge
    from edge.config import load_settings
    from edge.types import Sampling

    context = 2 * options.tokens  # both prompts at once, whatever shares its cells
    settings = load_settings({"model": options.model, "context": context, "kv.enabled": False, "governor.enabled": False})
    results: dict[str, list[dict[str, float]]] = {"alone": [], "beside": []}
    with edge.load(settings=settings, threads=options.threads, require="cpu") as ai:
        ai.sampling = Sampling(temperature=0, max_tokens=4)
        ask(ai, "hello")  # what only the first turn of a process pays
        for number in range(options.rounds):
            results["alone"].append(ask(ai, f"hey {number}"))
            results["beside"].append(ask_beside(ai, number, options.tokens))
            print(f"round {number + 1}: {results['beside'][-1]['first token']:.0f} ms", file=sys.stderr)
    print("| median, ms (range) | " + " | ".join(NAMES) + " |\n|---" + "|---:" * len(NAMES) + "|")
    for where, rounds in results.items():
        cells = []
        for name in NAMES:
            values = [one[name] for one in rounds]
            cells.append(f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        print(f"| {where} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps({"load_average": os.getloadavg()[0], **results}, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
