"""Measure what read-ahead gains: the time to the first token in the chat, with and without what was typed prefilled meanwhile.

Runs the chat itself, without a terminal, with the real model. A message is typed word by word with a pause behind each
sentence, once with a 2,000-token file attached first, and sent right behind its last word. Both ways take turns, each time with
another text, so that nothing else is reused.

    python benchmarks/read_ahead.py [--model smollm2-135m] [--threads 2] [--pace 0.3] [--rounds 3] [--case file]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.config import load_settings
from edge.conversation import Attachment, ConversationStore
from edge_chat.app import ChatApp

if TYPE_CHECKING:
    from textual.pilot import Pilot

WORDS = ["the", "river", "runs", "over", "stones", "and", "under", "old", "bridges", "while", "people", "walk", "along", "it"]
SENTENCE, PAUSE_S = 12, 0.8  # words of a sentence, and the time to think behind it
CASES = {"typed": (120, 0), "file": (12, 2000)}
"""Name -> words that are typed, tokens of the file that they are about."""


@dataclass
class Sample:
    """One message: what it was, seconds to its first token, and tokens of its prompt that were prefilled by then."""

    case: str
    is_on: bool
    first_token_s: float
    n_prompt: int
    n_ahead: int


def text_of(n_words: int, seed: int) -> list[str]:
    """Return words that no other seed begins with."""
    numbers = random.Random(seed)
    return [f"Text {seed}:", *(numbers.choice(WORDS) for _ in range(n_words - 1))]


async def until(pilot: Pilot[int], is_true: Any) -> None:
    """Wait while the app runs."""
    while not is_true():
        await pilot.pause(0.02)


async def write(app: ChatApp, pilot: Pilot[int], n_words: int, n_tokens: int, pace_s: float, seed: int) -> dict[str, Any]:
    """Write and send one message in a new conversation, and return the record of its answer."""
    controller, composer = app.chat_screen.controller, app.chat_screen.composer
    await controller.new()
    if n_tokens:
        composer.attach(Attachment("file.txt", " ".join(text_of(n_tokens, 1000 + seed))))
    for number, word in enumerate(text_of(n_words, seed), 1):
        composer.input.insert(f"{word} ")
        await pilot.pause(PAUSE_S if number % SENTENCE == 0 and number < n_words else pace_s)
    composer.input.focus()
    await pilot.press("enter")
    nodes = lambda: controller.page.nodes if controller.page is not None else ()  # noqa: E731
    await until(pilot, lambda: not controller.busy_ids and [node.role for node in nodes()] == ["user", "assistant"])
    return dict(nodes()[-1].record)


async def run(arguments: argparse.Namespace) -> list[Sample]:
    """Measure every case with and without, in turns."""
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        base = {
            "model": arguments.model,
            "threads": arguments.threads,
            "context": 4096,
            "kv.enabled": False,
            "governor.enabled": False,
            "sampling.max_tokens": 4,
            "sampling.temperature": 0.0,
            "paths.data_dir": folder,
            "paths.models_dir": str(load_settings().paths.models_dir),
        }
        seed = 0
        for number in range(arguments.rounds):
            for is_on in (False, True) if number % 2 else (True, False):
                app = ChatApp(load_settings({**base, "chat.read_ahead": is_on}), store=ConversationStore(None))
                async with app.run_test(size=(100, 30)) as pilot:
                    await until(pilot, lambda app=app: app.host.state.phase in ("ready", "failed"))
                    if app.host.state.error is not None:
                        raise app.host.state.error
                    await write(app, pilot, 3, 0, 0.0, seed=10_000 + seed)  # the first pass is slower
                    for case in arguments.case or CASES:
                        n_words, n_tokens = CASES[case]
                        seed += 1
                        record = await write(app, pilot, n_words, n_tokens, arguments.pace, seed)
                        usage = record["usage"]
                        first_token_s = record["timing"]["first_token_ms"] / 1000
                        samples.append(Sample(case, is_on, first_token_s, usage["n_prompt"], usage["n_reused"]))
                        print(samples[-1], flush=True)
    return samples


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pace", type=float, default=0.3, help="seconds a word; 0.3 is 200 words a minute, 1.5 is 40")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one")
    arguments = parser.parse_args()
    samples = asyncio.run(run(arguments))
    print("| message | prompt tokens | without | with | times sooner | prefilled by then |\n|---|---:|---:|---:|---:|---:|")
    for case in arguments.case or CASES:
        on, off = ([one for one in samples if one.case == case and one.is_on is is_on] for is_on in (True, False))
        with_it, without = (statistics.median(one.first_token_s for one in group) for group in (on, off))
        ahead = statistics.median(one.n_ahead / one.n_prompt for one in on)
        n_prompt = round(statistics.median(one.n_prompt for one in on))
        print(f"| {case} | {n_prompt:,} | {without:.2f} s | {with_it:.2f} s | {without / with_it:.1f} | {ahead:.0%} |")


if __name__ == "__main__":
    main()
