#!/usr/bin/env python3
"""Measure several conversations at once, while long prompts arrive among their short messages.

    python benchmarks/load.py [--model int4.gguf] [--conversations 1 2 4 8 16] [--turns 6] [--long 4000] [--json FILE]

Each conversation sends short messages, each after the reply to the one before. Beside them somebody sends long prompts that
nobody has sent before, likewise, until the conversations are done. "one after another" is the same with one reply at a time, as
an application without a scheduler would do it. Printed are, over all short messages:

  tokens/s     decoded tokens of short messages in all, by the time until the last one is done
  first token  from `send` to the first text, at 50, 95 and 99 %, in milliseconds
  gap          between two pieces of text of a reply, likewise
  long         long prompts that were answered, and the median time until their first text, in seconds
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from first_token_beside import long_text

WAYS = ("together", "one after another")
PERCENTS = (50, 95, 99)
SHORT = "{n}: Tell me something about {topic} in a few sentences."
TOPICS = ("rivers", "bread", "the moon", "bicycles", "salt", "winter", "clocks", "paper", "bridges", "owls")


@dataclass
class Load:
    """What was measured with so many conversations.

    Attributes:
        first_ms, gaps_ms: of short messages.
        long_s: until the first text of each long prompt, in seconds.
    """

    n_conversations: int
    way: str
    wall_s: float = 0.0
    n_tokens: int = 0
    first_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)
    long_s: list[float] = field(default_factory=list)


def percentile(values: list[float], percent: float) -> float:
    """The value that so many percent of them do not exceed; NaN of none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))] if ranked else float("nan")


def answer(conversation: Any, text: str, asked: float) -> tuple[list[float], int]:
    """Send a message. Returns the seconds from `asked` to each piece of text, and the number of tokens."""
    reply = conversation.send(text)
    times = [time.perf_counter() - asked for _ in reply]
    return times, reply.usage.n_generated


def measure(ai: Any, load: Load, n_turns: int, n_long: int, seed: int) -> Load:
    """Run one load."""
    done, line = threading.Event(), ThreadPoolExecutor(1)  # a queue: who asks first is answered first

    def ask(conversation: Any, text: str) -> tuple[list[float], int]:
        if load.way == "together":
            return answer(conversation, text, time.perf_counter())
        return line.submit(answer, conversation, text, time.perf_counter()).result()

    def chat(number: int) -> None:
        conversation = ai.conversation()
        for n in range(n_turns):
            text = SHORT.format(n=f"{seed}.{number}.{n}", topic=TOPICS[(number + n) % len(TOPICS)])
            times, n_tokens = ask(conversation, text)
            load.n_tokens += n_tokens
            load.first_ms += [1000 * times[0]] if times else []
            load.gaps_ms += [1000 * (late - early) for early, late in pairwise(times)]

    def send_long() -> None:
        while n_long and not done.is_set():
            times, _ = ask(ai.conversation(), long_text(ai, seed * 1000 + len(load.long_s), n_long))
            load.long_s += times[:1]

    began = time.perf_counter()
    with line, ThreadPoolExecutor(load.n_conversations + 1) as pool:
        long = pool.submit(send_long)
        chats = [pool.submit(chat, number) for number in range(load.n_conversations)]
        try:
            for one in chats:
                one.result()
            load.wall_s = time.perf_counter() - began
        finally:
            done.set()
        long.result()
    return load


def row(load: Load) -> str:
    """One line of the table."""
    three = [" / ".join(f"{percentile(values, p):.0f}" for p in PERCENTS) for values in (load.first_ms, load.gaps_ms)]
    long = f"{len(load.long_s)}, {statistics.median(load.long_s):.1f}" if load.long_s else "none"
    cells = (load.n_conversations, load.way, f"{load.n_tokens / load.wall_s:.1f}", *three, long)
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL"), help="a GGUF, or a name of the catalogue")
    parser.add_argument("--conversations", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--turns", type=int, default=6, help="short messages of each conversation")
    parser.add_argument("--tokens", type=int, default=48, help="of a reply at most")
    parser.add_argument("--long", type=int, default=4000, help="tokens of a long prompt; 0 sends none")
    parser.add_argument("--max-gap-ms", type=float, default=None, help="instead of the setting's default")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    if not options.model:
        parser.error("give --model, or set EDGE_TEST_MODEL")
    import edge
    from edge.config import load_settings
    from edge.types import Sampling

    most = max(options.conversations)
    settings = {
        "model": options.model,
        "context": options.long + options.tokens + most * options.turns * (options.tokens + 48),  # all of them at once
        "engine.parallel": most + 1,
        "kv.enabled": False,
        "governor.enabled": False,
    }
    if options.max_gap_ms:
        settings["engine.max_gap_ms"] = options.max_gap_ms
    results = []
    with edge.load(settings=load_settings(settings), threads=options.threads, require="cpu") as ai:
        ai.sampling = Sampling(temperature=0, max_tokens=options.tokens)
        answer(ai.conversation(), "hello", 0.0)  # what only the first turn of a process pays
        print("| conversations | | tokens/s | first token, ms | gap, ms | long, s |\n|---:|---|---:|---:|---:|---:|")
        for seed, n_conversations in enumerate(options.conversations):
            for n, way in enumerate(options.ways):
                load = Load(n_conversations, way)
                results.append(measure(ai, load, options.turns, options.long, 10 * seed + n))
                print(row(load), flush=True)
    if options.json:
        report = {"load_average": os.getloadavg()[0], "settings": settings, "loads": [asdict(load) for load in results]}
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
