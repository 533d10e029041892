#!/usr/bin/env python3
"""Measure the time of an answer, and what each step of edge takes off it: the ladder of docs/latency.md.

    python benchmarks/latency.py --model int4.gguf --float16 f16.gguf [--rounds 3] [--words 32] [--json FILE] [--plot FILE.svg]

One scenario for every rung: an assistant with a manual of about 1,000 tokens as its system prompt is asked six questions in one
conversation, and its program is restarted before the first, the third and the fifth. Each reply is greedy and has exactly
`--words` tokens. Loading the model is not counted, everything else is: from the question to the last token of the reply.
The rungs take turns within a round.

  transformers   the checkpoint in float32 with transformers and PyTorch; every turn reads the whole conversation
  float16        the same weights in 16 bits with llama.cpp; every turn reads the whole conversation
  int4           the model that edge ships
  memory         edge without its cache on the disk: a turn reads what is new; a restart forgets
  disk           edge with its default settings, on a device that was never asked before
  disk, again    the same, on a device that has had another conversation with this manual
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.bench.ladder_work import manual

QUESTIONS = (
    "What should I check before I switch the device on?",
    "The lamp blinks red. What does it mean?",
    "And when it stays red after a minute?",
    "How do I clean the filter?",
    "How often?",
    "Give me the whole procedure as a short list.",
)
RESTARTS = (0, 2, 4)
"""Turns before which the program is restarted."""
LABELS = {
    "transformers": "transformers, float32",
    "float16": "llama.cpp, float16",
    "int4": "llama.cpp, int4",
    "memory": "edge, cache in memory",
    "disk": "edge, defaults",
    "disk, again": "edge, manual cached",
}


@dataclass(frozen=True)
class Answer:
    """One turn: milliseconds to the first text and to the end, tokens of the prompt and how many were reused."""

    first_ms: float
    total_ms: float
    n_prompt: int
    n_reused: int


class WithEdge:
    """The scenario through the embedding API."""

    def __init__(self, model: Path, folder: Path, *, n_words: int, keeps: bool, disk: bool, threads: int | None) -> None:
        from edge.config import load_settings
        from edge.conversation import ConversationStore

        os.environ["EDGE_CACHE_DIR"] = str(folder / "cache")
        self._settings = load_settings({"kv.enabled": disk, "model": str(model), "context": 2048})
        self._threads, self._keeps, self._n_words = threads, keeps, n_words
        self._store = ConversationStore(folder / "conversations.db")
        self._conversation: str | None = None
        self._ai: Any = None

    def _open(self) -> Any:
        import edge

        return edge.load(settings=self._settings, threads=self._threads, require="cpu", store=self._store)

    def ask(self, turn: int, question: str) -> Answer:
        from edge.types import Sampling

        if self._ai is None or turn in RESTARTS or not self._keeps:
            self.leave()
            self._ai = self._open()
        ai = self._ai
        ends = {token: float("-inf") for token in _ends(ai)}
        sampling = Sampling(temperature=0, max_tokens=self._n_words, logit_bias=ends)
        conversation = ai.conversation(self._conversation, system=None if self._conversation else manual(), sampling=sampling)
        self._conversation = conversation.id
        started = time.perf_counter()
        reply = conversation.send(question)
        first_ms = 0.0
        for _ in reply:
            first_ms = first_ms or (time.perf_counter() - started) * 1000
        total_ms = (time.perf_counter() - started) * 1000
        assert reply.usage.n_generated == self._n_words, reply.usage
        return Answer(first_ms, total_ms, reply.usage.n_prompt, reply.usage.n_reused)

    def leave(self) -> None:
        if self._ai is not None:
            self._ai.close()
            self._ai = None

    def begin_again(self) -> None:
        """Open another conversation on the same device."""
        self.leave()
        self._conversation = None


def _ends(ai: Any) -> list[int]:
    """Return the tokens that would end a reply; forbidden, so that all replies are of one length."""

    tokenizer = ai._prompting.tokenizer
    return [token for token in range(tokenizer.n_vocab) if tokenizer.is_end(token)]


class WithTransformers:
    """The scenario with transformers, as its documentation shows it."""

    def __init__(self, gguf: Path, *, n_words: int, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(threads)
        options = {"gguf_file": gguf.name}
        self._tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        self._model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options).eval()
        self._n_words = n_words
        self._messages = [{"role": "system", "content": manual()}]

    def ask(self, turn: int, question: str) -> Answer:
        from transformers import TextIteratorStreamer

        self._messages.append({"role": "user", "content": question})
        started = time.perf_counter()
        prompt = self._tokenizer.apply_chat_template(
            self._messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        streamer: Any = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        options = {"do_sample": False, "max_new_tokens": self._n_words, "min_new_tokens": self._n_words}
        writer = threading.Thread(target=self._model.generate, kwargs={**prompt, **options, "streamer": streamer})
        writer.start()
        first_ms, pieces = 0.0, []
        for piece in streamer:
            first_ms = first_ms or ((time.perf_counter() - started) * 1000 if piece else 0.0)
            pieces.append(piece)
        writer.join()
        total_ms = (time.perf_counter() - started) * 1000
        self._messages.append({"role": "assistant", "content": "".join(pieces)})
        return Answer(first_ms, total_ms, prompt["input_ids"].shape[1], 0)

    def begin_again(self) -> None:
        del self._messages[1:]

    leave = begin_again


def play(one: WithEdge | WithTransformers) -> list[Answer]:
    answers = [one.ask(turn, question) for turn, question in enumerate(QUESTIONS)]
    one.begin_again()
    return answers


def measure(options: argparse.Namespace, threads: int) -> dict[str, list[list[Answer]]]:
    """Return the answers: rung -> round -> turn."""
    results: dict[str, list[list[Answer]]] = {name: [] for name in LABELS}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)

            def with_edge(rung: str, model: Path, *, keeps: bool, disk: bool, into: Path = folder) -> WithEdge:
                (into / rung).mkdir()
                return WithEdge(model, into / rung, n_words=options.words, keeps=keeps, disk=disk, threads=threads)

            rungs: dict[str, Callable[[], WithEdge | WithTransformers]] = {
                "transformers": lambda: WithTransformers(options.float16, n_words=options.words, threads=threads),
                "float16": lambda: with_edge("float16", options.float16, keeps=False, disk=False),
                "int4": lambda: with_edge("int4", options.model, keeps=False, disk=False),
                "memory": lambda: with_edge("memory", options.model, keeps=True, disk=False),
                "disk": lambda: with_edge("disk", options.model, keeps=True, disk=True),
            }
            for rung in [*rungs][:: -1 if number % 2 else 1]:
                one = rungs[rung]()
                results[rung].append(play(one))
                if rung == "disk":
                    results["disk, again"].append(play(one))
                one.leave()
                print(f"round {number + 1}, {rung}: {mean_of(results[rung][-1], 'total_ms') / 1000:.2f} s", file=sys.stderr)
    return results


def mean_of(answers: list[Answer], name: str) -> float:
    return statistics.fmean(getattr(answer, name) for answer in answers)


def summarise(results: dict[str, list[list[Answer]]]) -> list[dict[str, Any]]:
    """Return a row a rung: medians over rounds of the mean over turns, in milliseconds."""
    rows: list[dict[str, Any]] = []
    for rung, rounds in results.items():
        totals = [mean_of(answers, "total_ms") for answers in rounds]
        n_prompt, n_reused = (sum(getattr(a, name) for answers in rounds for a in answers) for name in ("n_prompt", "n_reused"))
        rows.append(
            {
                "rung": rung,
                "first_ms": statistics.median(mean_of(answers, "first_ms") for answers in rounds),
                "total_ms": statistics.median(totals),
                "spread_ms": [min(totals), max(totals)],
                "reused": n_reused / n_prompt,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| rung | first word | whole reply | reused | first word, times faster | whole reply, times faster |"]
    lines.append("|---|" + "---:|" * 5)
    base = rows[0]
    lines += [
        f"| {LABELS[row['rung']]} | {row['first_ms'] / 1000:.2f} s | {row['total_ms'] / 1000:.2f} s | {row['reused']:.0%} "
        f"| {base['first_ms'] / row['first_ms']:.1f} | {base['total_ms'] / row['total_ms']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "edge", "svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(figsize=(8, 2.8))
    names = [LABELS[row["rung"]] for row in rows]
    first = [row["first_ms"] / 1000 for row in rows]
    rest = [(row["total_ms"] - row["first_ms"]) / 1000 for row in rows]
    axes.barh(names, first, color="#c05621", label="until the first word")
    axes.barh(names, rest, left=first, color="#2b6cb0", label="until the last")
    for place, row in enumerate(rows):
        axes.text(row["total_ms"] / 1000, place, f" {row['total_ms'] / 1000:.1f} s", va="center")
    axes.invert_yaxis()
    axes.set_xlabel("seconds, mean over six turns")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=os.environ.get("EDGE_TEST_MODEL"), help="the int4 GGUF")
    parser.add_argument("--float16", type=Path, required=True, help="the same model in 16 bits: edge convert --quant F16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=32, help="tokens of every reply")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None, help="where the stores go; a temporary folder otherwise")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None, help="needs matplotlib")
    options = parser.parse_args()
    if not options.model:
        parser.error("give --model, or set EDGE_TEST_MODEL")
    from edge.device import probe

    results = measure(options, options.threads or probe().cpu.usable_logical)
    rows = summarise(results)
    print(table(rows))
    if options.json:
        turns = {rung: [[asdict(a) for a in answers] for answers in rounds] for rung, rounds in results.items()}
        report = {"load_average": os.getloadavg()[0], "rows": rows, "turns": turns}
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if options.plot:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
