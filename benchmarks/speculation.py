#!/usr/bin/env python3
"""Measure speculative decoding: the same questions with and without drafts, in turns, and whether the answers are the same.

    python benchmarks/speculation.py [--model int4.gguf] [--rounds 3] [--tokens 160] [--json FILE]
    python benchmarks/speculation.py --agreement 200      # only count how many of so many answers are the same
    python benchmarks/speculation.py --model f16.gguf --draft int4.gguf --work "free chat"

Five kinds of work: quoting a document, editing code, filling a form, answering from retrieved text, and free chat. Printed for
each: decoded tokens a second without and with drafts (medians over the rounds), their ratio, how many draft tokens came true,
and how many of the answers are the same, token by token. Where one differs, the first difference is a near tie of two tokens,
whose order the engine's last bits decide; the margin says how near: the difference of their logits.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FORM = "Name:\nStreet:\nTown:\nTelephone:\nReason for the visit:\nDate of the visit:\n"
FACTS = (
    "Ada Byron lives in 12 Harbour Lane in Lower Whitfield. Her telephone number is 555 0172. She wants to visit the archive "
    "on the 3rd of June to read the letters of her grandmother.",
    "Karl Henriksen, Mill Road 7, Eastvale, telephone 555 0199, asks for an appointment on the 21st of May, since his hearing "
    "aid makes noises.",
    "Visitor: Mei Lin. Address: Garden Street 41, Northport. Telephone: 555 0134. She comes on the 9th of July to repair the "
    "lift.",
)
CHAT = (
    "Write a short story about a fox and a river.",
    "Explain how a bicycle stays upright.",
    "What should I cook tonight? I have rice, eggs and an onion.",
    "Give me advice for a first day in a new job.",
)


def passages(n_chars: int) -> list[str]:
    """Return pieces of this project's documentation."""
    texts = [path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    return [text[start : start + n_chars] for text in texts for start in range(500, len(text) - n_chars, 4 * n_chars)]


def workloads() -> dict[str, list[str]]:
    """Return the questions of each kind of work."""
    quotes, codes = passages(900), [path.read_text("utf-8")[:1200] for path in sorted((ROOT / "edge").glob("*.py"))]
    return {
        "quote a document": [f"{text}\n\nRepeat the text above word by word." for text in quotes[:4]],
        "edit code": [
            f"```python\n{code}\n```\nRename every `path` to `place` and return the whole code." for code in codes[:4]
        ],
        "fill a form": [f"{fact}\n\nFill in this form:\n{FORM}" for fact in FACTS],
        "answer from text": [f"{text}\n\nQuote the sentences above that matter most, and say why." for text in quotes[4:8]],
        "free chat": list(CHAT),
    }


class Engine:
    """A model with a scheduler of its own.

    Args:
        plan: how to load it.
        planner: of the drafts; None for none.
        draft: how to load a model that drafts, too; None for none.
    """

    def __init__(self, plan: Any, planner: Any, draft: Any = None) -> None:
        from edge.backends.base import open_backend
        from edge.engine.draft_model import DraftModel, check_draft
        from edge.engine.scheduler import Scheduler
        from edge.prompt.template import ChatTemplate

        backend = open_backend(plan)
        self.tokenizer = backend.tokenizer
        self.template = ChatTemplate.from_model(backend.info)
        model = None
        if draft is not None:
            second = open_backend(draft)
            check_draft(backend, second)
            model = DraftModel(second, backend.info.n_vocab)
        self.scheduler = Scheduler(backend, planner=planner, draft=model)

    def prompt(self, text: str) -> list[int]:
        """Return the tokens of a prompt with one question."""
        from edge.types import Message

        rendered = self.template.render([Message("user", text)])
        return self.tokenizer.tokenize(rendered.text, parse_special=True)

    def ask(self, prompt: list[int], n_tokens: int) -> Any:
        """Return how a greedy answer ended, computed from an empty cache: which cells are free changes the last bits, too."""
        from edge.engine.generation import Failed, Finished, Generation
        from edge.types import Sampling

        self.scheduler.call_alone(lambda _backend, _chunk_size: None)
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.scheduler.submit(Generation(prompt, Sampling(temperature=0, max_tokens=n_tokens), events.put))
        while not isinstance(event := events.get(), Finished):
            if isinstance(event, Failed):
                raise event.error
        return event

    def margin(self, tokens: list[int], one: int, other: int) -> float:
        """Return by how much the logits of two tokens differ after these tokens."""

        def measure(backend: Any, _chunk_size: int) -> float:
            backend.prefill(0, tokens)
            values = backend.logits(0)
            backend.rewind(0, 0)
            return abs(float(values[one] - values[other]))

        return self.scheduler.call_alone(measure)


def margin(engine: Engine, prompt: list[int], plain: Any, drafted: Any) -> float | None:
    """Return how near the tie was where two answers differ first; None if they are the same."""
    for number, (one, other) in enumerate(zip(plain.tokens, drafted.tokens, strict=False)):
        if one != other:
            return engine.margin([*prompt, *plain.tokens[:number]], one, other)
    return None if plain.tokens == drafted.tokens else 0.0


def measure(engines: dict[bool, Engine], questions: list[str], n_rounds: int, n_tokens: int) -> dict[str, Any]:
    """Measure one kind of work."""
    speeds: dict[bool, list[float]] = {False: [], True: []}
    margins: list[float | None] = []
    n_drafted = n_accepted = 0
    for text in questions:
        prompt = engines[True].prompt(text)
        for number in range(n_rounds):
            ends = {}
            for is_drafting in (False, True) if number % 2 else (True, False):
                end = ends[is_drafting] = engines[is_drafting].ask(prompt, n_tokens)
                speeds[is_drafting].append(end.timing.tokens_per_s(end.usage.n_generated))
            n_drafted += ends[True].usage.n_drafted
            n_accepted += ends[True].usage.n_accepted
        margins.append(margin(engines[False], prompt, ends[False], ends[True]))
    plain, drafting = (statistics.median(speeds[which]) for which in (False, True))
    ratios = [b / a for a, b in zip(speeds[False], speeds[True], strict=True) if a]
    different = [round(value, 4) for value in margins if value is not None]
    return {
        "plain": plain, "drafting": drafting, "ratio": statistics.median(ratios), "drafted": n_drafted, "accepted": n_accepted,
        "n": len(margins), "same": len(margins) - len(different), "margins": different,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL"), help="a GGUF, or a name of the catalogue")
    parser.add_argument("--draft", help="a smaller model that guesses, where nothing repeats")
    parser.add_argument("--backend", help="engine to run both on, such as openvino [the plan's choice]")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--work", choices=workloads(), action="append", help="only this kind")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160, help="most tokens of an answer")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--agreement", type=int, default=0, help="only compare so many answers")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    if not options.model:
        parser.error("give --model, or set EDGE_TEST_MODEL")
    import edge
    from edge.config import load_settings
    from edge.engine.drafting import Planner

    asked = {"context": options.context, "threads": options.threads, "backend": options.backend}
    settings = load_settings({**asked, "engine.draft": options.draft})
    plan = edge.plan_model(options.model, settings=settings)
    engines = {False: Engine(plan, None), True: Engine(plan, Planner(dict(plan.pass_costs)), plan.draft)}
    kinds = {name: questions for name, questions in workloads().items() if not options.work or name in options.work}
    if options.agreement:
        texts = [text for pair in zip(passages(400), passages(700), strict=False) for text in pair][: options.agreement]
        kinds = {"agreement": [f"{text}\n\nRepeat the text above, then say what it is about." for text in texts]}
        options.rounds = 1
    results = {}
    print("| work | plain, tokens/s | with drafts | ratio | right, of guessed | same answers |\n|---|---:|---:|---:|---:|---:|")
    for name, questions in kinds.items():
        found = results[name] = measure(engines, questions, options.rounds, options.tokens)
        print(
            f"| {name} | {found['plain']:.1f} | {found['drafting']:.1f} | {found['ratio']:.2f} | "
            f"{found['accepted']:,} of {found['drafted']:,} | {found['same']} of {found['n']} |",
            flush=True,
        )
        if found["margins"]:
            print(f"{name}: ties where answers differ, in logits: {found['margins']}", file=sys.stderr)
    for engine in engines.values():
        engine.scheduler.close()
    if options.json:
        options.json.write_text(json.dumps({"load_average": os.getloadavg()[0], **results}, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
