#!/usr/bin/env python3
"""Time to the first token of a follow-up after a restart: prefilled again, from llama.cpp's state file, from edge's blocks.

    python benchmarks/kv_restart.py --model model.gguf [--lengths 256,1024,2048,4096,8192] [--json FILE] [--plot FILE.svg]

Every figure is the whole first token: tokenise the text, bring in what was read before, compute the rest, choose a token.
The ways take turns within one run, each with a KV cache that is empty at the start:

  cold        nothing is brought in
  whole file  llama.cpp's own file of the sequence (llama_state_seq_save_file, llama_state_seq_load_file)
  blocks      our store, opened again; its files are in the page cache, as they are soon after a restart of the program
  from disk   the same with the store's files dropped from the page cache, as after a restart of the machine
  in memory   nothing was restarted: what computing the last tokens takes by itself
  limit       in memory, and the same bytes read from their files and copied once

Then: bytes written for each new token, ten conversations with one system prompt, a fork of a long conversation, and what the
cache costs a turn (turns with it and without it alternate).
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.backends.llamacpp.backend import LlamaCppBackend
from edge.device import probe
from edge.engine.generation import Event, Failed, Finished, Generation
from edge.engine.scheduler import Scheduler
from edge.formats.artifact import open_artifact
from edge.kv.cache import KVCache
from edge.kv.open import model_fingerprint
from edge.kv.store import BlockStore, StoreOptions
from edge.plan import Plan, PlanRequest, make_plan
from edge.types import Sampling

WORDS = Path(__file__).read_text("utf-8").split()
QUESTION = " Why?"
WAYS = ("cold", "whole file", "blocks", "from disk", "in memory", "limit")


def text_of(backend: LlamaCppBackend, n_tokens: int, seed: int = 0) -> str:
    """Return some text of about so many tokens, never more."""
    import random

    rng = random.Random(seed)
    words = [rng.choice(WORDS) for _ in range(2 * n_tokens)]
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if len(backend.tokenizer.tokenize(" ".join(words[:middle]))) <= n_tokens else (low, middle - 1)
        )
    return " ".join(words[:low])


class Engine:
    """A loaded model with an empty KV cache."""

    def __init__(self, plan: Plan, directory: Path | None = None, *, exact: bool = False) -> None:
        self.backend = LlamaCppBackend(plan)
        self.store = None
        model = b""
        if directory is not None:
            self.store = BlockStore(directory, StoreOptions(budget_bytes=1 << 36, min_free_bytes=0))
            model = model_fingerprint(self.backend, plan.artifact, exact=exact)
        self.scheduler = Scheduler(self.backend, KVCache(self.backend, self.store, model=model, exact=exact))

    def ask(self, text: str, n_tokens: int = 1, *, shared: str = "") -> tuple[float, Finished]:
        """Tokenise a text and generate a reply; return the milliseconds until its last token, and the end.

        `shared` is what other texts begin with, too: a conversation's system prompt.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        started = time.perf_counter()
        tokens = self.scheduler.call(lambda backend: backend.tokenizer).tokenize(text)
        sampling = Sampling(temperature=0, max_tokens=n_tokens)
        ends = [len(self.scheduler.call(lambda backend: backend.tokenizer).tokenize(shared))] if shared else []
        self.scheduler.submit(Generation(tokens, sampling, events.put, boundaries=ends, asked_at=started))
        while True:
            event = events.get()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                return (time.perf_counter() - started) * 1000, event

    def close(self) -> None:
        self.scheduler.close()
        if self.store is not None:
            self.store.close(60.0)


@contextmanager
def engine(plan: Plan, directory: Path | None = None) -> Iterator[Engine]:
    one = Engine(plan, directory)
    try:
        yield one
    finally:
        one.close()


def drop_from_page_cache(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def whole_file(plan: Plan, state: Path, text: str, n_kept: int) -> float:
    """Measure a follow-up from llama.cpp's own file, through the same library and the same passes."""
    import ctypes

    with LlamaCppBackend(plan) as backend:
        library = backend._library
        room = (ctypes.c_int32 * n_kept)()
        n_read = ctypes.c_size_t()
        started = time.perf_counter()
        tokens = backend.tokenizer.tokenize(text)
        if not library.llama_state_seq_load_file(backend._context, os.fsencode(state), 0, room, n_kept, ctypes.byref(n_read)):
            raise SystemExit("llama.cpp could not read its state file.")
        assert list(room[: n_read.value]) == tokens[: n_read.value], "the file holds another text"
        backend._cells.append(0, n_read.value)
        backend.prefill(0, tokens[n_read.value :])
        backend.open_sampler(Sampling(temperature=0)).sample(0)
        return (time.perf_counter() - started) * 1000


def save_whole_file(plan: Plan, state: Path, text: str, blocks: Path) -> int:
    """Have llama.cpp write its file with the contents of our blocks, and return its number of tokens."""
    import ctypes

    with engine(plan, blocks) as one:
        _, end = one.ask(text)
        n_tokens = end.usage.n_prompt

        def save(backend: Any) -> None:
            tokens = (ctypes.c_int32 * n_tokens)(*backend.tokenizer.tokenize(text))
            library = backend._library
            if not library.llama_state_seq_save_file(backend._context, os.fsencode(state), 0, tokens, n_tokens):
                raise SystemExit("llama.cpp could not write its state file.")

        one.scheduler.call(save)
        return n_tokens


def read_and_copy(directory: Path) -> float:
    """Measure the least that a restore can take: the bytes of the blocks, read and copied once. Milliseconds."""
    paths = sorted(path for path in (directory / "blocks").rglob("*") if path.is_file())
    buffers = [bytearray(path.stat().st_size) for path in paths]
    target = bytearray(max(map(len, buffers)))
    for buffer in (*buffers, target):
        buffer[::4096] = b"\1" * len(buffer[::4096])  # memory that is there, as the KV cache is
    started = time.perf_counter()
    for path, buffer in zip(paths, buffers, strict=True):
        with path.open("rb", buffering=0) as file:
            file.readinto(buffer)
        target[: len(buffer)] = buffer
    return (time.perf_counter() - started) * 1000


def first_tokens(plan: Plan, n_history: int, question: str, repeats: int, folder: Path) -> dict[str, Any]:
    plan = replace(plan, n_ctx=max(512, n_history + 256))
    blocks, state = folder / f"kv-{n_history}", folder / f"state-{n_history}"
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    with engine(plan, blocks) as one:
        history = text_of(one.backend, n_history)
        ms, end = one.ask(history)
        n_tokens = end.usage.n_prompt
        times["cold"].append(ms)
    follow_up = history + question
    save_whole_file(plan, state, history, blocks)
    for number in range(repeats):
        if number and n_history <= 2048:
            with engine(plan) as one:
                times["cold"].append(one.ask(follow_up)[0])
        whole_file(plan, state, follow_up, n_tokens) if number == 0 else None  # the first reads the page cache in
        times["whole file"].append(whole_file(plan, state, follow_up, n_tokens))
        with engine(plan, blocks) as one:
            ms, end = one.ask(follow_up)
            assert end.usage.n_restored >= n_tokens - 1, end.usage
            times["blocks"].append(ms)
            ms, _ = one.ask(history + question + "!" * (number + 1))
            ms, _ = one.ask(history + question)
            times["in memory"].append(ms)
        copied_ms = read_and_copy(blocks)
        times["limit"].append(copied_ms + times["in memory"][-1])
        drop_from_page_cache(blocks)
        with engine(plan, blocks) as one:
            times["from disk"].append(one.ask(follow_up)[0])
    result: dict[str, Any] = {name: statistics.median(values) for name, values in times.items()}
    result["n_tokens"], result["spread"] = n_tokens, {name: [min(v), max(v)] for name, v in times.items()}
    result["payload_mb"] = sum(path.stat().st_size for path in (blocks / "blocks").rglob("*") if path.is_file()) / 1e6
    shutil.rmtree(blocks)
    state.unlink()
    return result


def bytes_per_token(plan: Plan, folder: Path) -> dict[str, float]:
    """Measure a conversation of many turns: bytes written to the disk for each new token, against the KV's own size."""
    directory = folder / "kv-turns"
    plan = replace(plan, n_ctx=2048)
    with engine(plan, directory) as one:
        assert one.store is not None
        text = text_of(one.backend, 200, 1)
        for turn in range(8):
            _, end = one.ask(text, 40)
            text += bytes_text(one.backend, end) + " " + text_of(one.backend, 30, turn)
        one.store.flush(60.0)
        stats = one.store.stats()
        written = sum(info.size_bytes for info in one.store.ls())
        own = one.scheduler.call(bytes_of_a_token)
    shutil.rmtree(directory)
    return {"per token": written / stats.n_tokens, "own size": own, "ratio": written / stats.n_tokens / own}


def bytes_of_a_token(backend: Any) -> float:
    """Return the KV's own size, from the longest sequence: turns may have moved to another one than the first."""
    longest = max(range(backend.capabilities.n_seq), key=backend.length)
    return len(backend.export_kv(longest, 0, 256)) / 256


def bytes_text(backend: LlamaCppBackend, end: Finished) -> str:
    return b"".join(backend.tokenizer.token_bytes(token) for token in end.tokens).decode("utf-8", "replace")


def shared_prompt(plan: Plan, folder: Path) -> dict[str, float]:
    """Measure ten conversations with one system prompt of about 1,000 tokens."""
    directory = folder / "kv-shared"
    plan = replace(plan, n_ctx=2048)
    first, later = 0.0, []
    with engine(plan) as one:
        system = text_of(one.backend, 1000, 2)
        questions = [" " + text_of(one.backend, 30, 100 + number) for number in range(10)]
    for question in questions:
        with engine(plan, directory) as one:
            ms, _ = one.ask(system + question, shared=system)
            later.append(ms)
        first = first or ms
    with engine(plan, directory) as one:
        assert one.store is not None
        n_tokens = one.store.stats().n_tokens
    shutil.rmtree(directory)
    return {"first_ms": first, "later_ms": statistics.median(later[1:]), "tokens_stored": n_tokens}


def fork(plan: Plan, folder: Path) -> dict[str, float]:
    """Measure a fork of a conversation of 4,000 tokens after a restart, against going on with it in memory."""
    directory = folder / "kv-fork"
    plan = replace(plan, n_ctx=4608)
    with engine(plan, directory) as one:
        history = text_of(one.backend, 4000, 3)
        one.ask(history)
    memory, forked = [], []
    for number in range(5):
        with engine(plan, directory) as one:
            tail = " " + text_of(one.backend, 16, 50 + number)
            forked.append(one.ask(history[: len(history) * 3 // 4] + tail)[0])
            one.ask(history)
            memory.append(one.ask(history + tail)[0])
    shutil.rmtree(directory)
    return {
        "in memory_ms": statistics.median(memory),
        "fork_ms": statistics.median(forked),
        "ratio": statistics.median(f / m for f, m in zip(forked, memory, strict=True)),
    }


def cost_of_a_turn(plan: Plan, folder: Path, n_pairs: int) -> dict[str, Any]:
    """Measure the same turns with the cache on the disk and without it, alternating: 300 tokens prefilled, 60 decoded."""
    plan = replace(plan, n_ctx=1024)
    directory = folder / "kv-cost"
    ratios, off = [], Engine(plan)
    on = Engine(plan, directory)
    for number in range(n_pairs + 1):
        text = text_of(off.backend, 300, 1000 + number)
        order = [off, on] if number % 2 else [on, off]
        times = {id(one): one.ask(text, 60)[0] for one in order}
        if number:  # the first warms up
            ratios.append(times[id(on)] / times[id(off)])
    for one in (on, off):
        one.close()
    shutil.rmtree(directory)
    quartiles = statistics.quantiles(ratios, n=4)
    return {"ratio": statistics.median(ratios), "quartiles": [quartiles[0], quartiles[2]], "n_pairs": n_pairs}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| " + " | ".join(["history, tokens", *WAYS, "cold / blocks", "whole file / blocks", "blocks / limit"]) + " |",
        "|" + "---:|" * (4 + len(WAYS)),
    ]
    for row in rows:
        ours = row["blocks"]
        cells = [f"{row['n_tokens']:,}", f"{row['cold'] / 1000:.2f} s"]
        cells += [f"{row[name]:.0f} ms" for name in WAYS[1:]]
        cells += [f"{row['cold'] / ours:.0f}", f"{row['whole file'] / ours:.2f}", f"{ours / row['limit']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the time to the first token over the length of the history, both on logarithmic scales."""
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "edge", "svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(figsize=(8, 3.4))
    lines = (
        ("cold", "prefilled again", "#c05621", "-"),
        ("whole file", "llama.cpp's file of the whole sequence", "#718096", "-"),
        ("from disk", "edge, after a restart of the machine", "#2b6cb0", "--"),
        ("blocks", "edge, after a restart of the program", "#2b6cb0", "-"),
        ("limit", "limit: read and copy the bytes, compute the last tokens", "#38a169", ":"),
    )
    lengths = [row["n_tokens"] for row in rows]
    for name, label, colour, style in lines:
        axes.plot(lengths, [row[name] / 1000 for row in rows], color=colour, linestyle=style, marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="tokens of history", ylabel="seconds to the first token (median)")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set_title("First token after a restart", fontsize=9, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=os.environ.get("EDGE_TEST_MODEL"), help="GGUF file")
    parser.add_argument("--lengths", default="256,1024,2048,4096,8192", help="tokens of history, with commas")
    parser.add_argument("--question", default=QUESTION, help="what follows the history")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=10, help="of turns with the cache and without it")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None, help="where the stores go; a temporary folder otherwise")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    parser.add_argument("--plot", type=Path, default=None, help="draw the first tokens here (needs matplotlib)")
    parser.add_argument("--only", choices=["restart", "rest"], default=None)
    options = parser.parse_args()
    if not options.model:
        parser.error("give --model, or set EDGE_TEST_MODEL")
    artifact = open_artifact(options.model)
    request = PlanRequest(backend="llamacpp", require="cpu", context=1024, threads=options.threads, n_seq=2)
    plan = make_plan(probe(), artifact, request, safety=None)
    results: dict[str, Any] = {"load_average": os.getloadavg()[0], "threads": plan.n_threads}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.only != "rest":
            rows: list[dict[str, Any]] = []
            results["first token"] = rows
            for length in map(int, options.lengths.split(",")):
                rows.append(first_tokens(plan, length, options.question, options.repeats, folder))
                print(table(rows[-1:]).splitlines()[-1], file=sys.stderr)
            print(table(rows))
            if options.plot:
                plot(rows, options.plot)
        if options.only != "restart":
            rest: list[tuple[str, Callable[[], dict[str, Any]]]] = [
                ("bytes written", lambda: bytes_per_token(plan, folder)),
                ("ten conversations", lambda: shared_prompt(plan, folder)),
                ("fork", lambda: fork(plan, folder)),
                ("cost of a turn", lambda: cost_of_a_turn(plan, folder, options.pairs)),
            ]
            for title, measure in rest:
                results[title] = measure()
                print(title, json.dumps(results[title]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
