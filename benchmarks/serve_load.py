"""Many clients at `edge serve`, and the same at llama.cpp's own server: long and short prompts, streamed or not, and some that
go in the middle.

    python benchmarks/serve_load.py --seconds 120 --clients 32              # edge, then llama.cpp's server (package xllamacpp)
    python benchmarks/serve_load.py --server edge --seconds 20 --json

Prints how long clients waited, how many were refused, broken off or still waiting after `--patience` seconds, and what of
memory, threads, open files and replies was left at the end. Both servers have the same model, context, sequences and threads.
Exit code 1 if anybody waited in vain, a reply was left, or threads or files became more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).parents[1]
EDGE = Path(sys.executable).with_name("edge")
WORDS = ("river", "stone", "lamp", "green", "seven", "orbit", "paper", "quiet", "morning", "engine", "salt", "window")
N_CTX, N_PARALLEL = 4096, 4
WARM_S, REST_S, SLACK = 5.0, 5.0, 2  # the last: threads and files that come and go


@dataclass
class Seen:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    n_left: int = 0
    n_broken: int = 0
    n_stuck: int = 0
    n_prompt: int = 0
    n_generated: int = 0
    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)


async def visit(address: tuple[str, int], model: str, choose: random.Random, seen: Seen, patience_s: float) -> None:
    """Ask once, and perhaps go before the answer is there."""
    n_words = choose.choice((5, 5, 5, 40, 400))
    is_streamed = choose.random() < 0.7
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": " ".join(choose.choice(WORDS) for _ in range(n_words))},
        ],
        "max_tokens": choose.choice((8, 32)),
        "stream": is_streamed,
    }
    if is_streamed:
        body["stream_options"] = {"include_usage": True}
    data = json.dumps(body)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    stays_s = choose.uniform(0, 3) if choose.random() < 0.25 else None
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n{data}".encode())
        await asyncio.wait_for(_read(reader, seen, began), patience_s if stays_s is None else stays_s)
    except asyncio.TimeoutError:
        seen.n_left += stays_s is not None
        seen.n_stuck += stays_s is None
    except (OSError, IndexError, ValueError):
        seen.n_broken += 1
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _read(reader: asyncio.StreamReader, seen: Seen, began: float) -> None:
    status = int((await reader.readline()).split()[1])
    seen.statuses[status] += 1
    whole = b""
    first_s = 0.0
    while part := await reader.read(65536):
        whole += part
        if not first_s and re.search(rb'"content": ?"[^"]', whole):
            first_s = time.perf_counter() - began
    if status == 429:
        await asyncio.sleep(0.5)
    if status != 200:
        return
    counts = [re.findall(rb'"%s_tokens": ?(\d+)' % name, whole) for name in (b"prompt", b"completion")]
    seen.n_prompt += int(counts[0][-1])  # an IndexError where the answer broke off
    seen.n_generated += int(counts[1][-1])
    if first_s:
        seen.first_s.append(first_s)
    seen.whole_s.append(time.perf_counter() - began)


async def run(address: tuple[str, int], model: str, n_clients: int, seconds: float, patience_s: float) -> Seen:
    """Have clients ask one thing after another for a while."""
    seen, until = Seen(), time.monotonic() + seconds

    async def client(number: int) -> None:
        choose = random.Random(number)
        while time.monotonic() < until:
            await visit(address, model, choose, seen, patience_s)

    await asyncio.gather(*map(client, range(n_clients)))
    return seen


@contextlib.contextmanager
def edge_server(model: str, threads: int, folder: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `edge serve`, whose KV cache is in a folder of its own."""
    command = [EDGE, "serve", "-m", model, "--context", str(N_CTX), "--parallel", str(N_PARALLEL), "--threads", str(threads)]
    environment = {**os.environ, "EDGE_CACHE_DIR": folder}
    with subprocess.Popen(
        [*command, "--port", "0", "--json", "--log", "off"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["url"]
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def llama_server(model: str, threads: int, folder: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start llama.cpp's server, whose sequences share one KV cache, too."""
    path = subprocess.run(
        [EDGE, "models", "show", model, "--format", "gguf", "--path"], capture_output=True, text=True, check=True
    )
    command = [sys.executable, "-m", "tests.standins.llama_server", path.stdout.strip(), str(N_CTX), "--repack"]
    more = ["--parallel", str(N_PARALLEL), "--threads", str(threads)]
    with subprocess.Popen(
        [*command, *more], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        yield process, process.stdout.readline().strip()
        process.stdin.close()
        process.wait(60)


def state_of(process: psutil.Process) -> dict[str, float]:
    """Return memory in MB, threads and open files of the server."""
    with process.oneshot():
        return {"MB": process.memory_info().rss / 1e6, "threads": process.num_threads(), "files": process.num_fds()}


def replies_left(url: str) -> int:
    """Return how many replies `edge serve` still works on or has waiting."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if re.match(r"edge_(running|waiting)_replies\{", line))


def percentile(values: list[float], share: float) -> float:
    """Return a percentile; 0 without values."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Load one server, and return what was seen."""
    start = {"edge": edge_server, "llama": llama_server}[name]
    with tempfile.TemporaryDirectory() as folder, start(options.model, options.threads, folder) as (process, url):
        parts = urlsplit(url)
        address = (parts.hostname or "", parts.port or 0)
        asyncio.run(
            run(address, options.model, 8, WARM_S, options.patience)
        )  # the model is loaded, and all of it was used once
        server = psutil.Process(process.pid)
        time.sleep(REST_S)
        before = state_of(server)
        began = time.perf_counter()
        seen = asyncio.run(run(address, options.model, options.clients, options.seconds, options.patience))
        took_s = time.perf_counter() - began
        time.sleep(REST_S)
        after = state_of(server)
        left = replies_left(url) if name == "edge" else None
    waits = {
        f"{what}_{label}_s": round(percentile(values, share), 2)
        for what, values in (("first_text", seen.first_s), ("whole", seen.whole_s))
        for label, share in (("median", 0.5), ("p95", 0.95), ("most", 1.0))
    }
    return {
        "server": name,
        "clients": options.clients,
        "seconds": round(took_s, 1),
        "statuses": {str(status): n for status, n in sorted(seen.statuses.items())},
        "answers": len(seen.whole_s),
        "left": seen.n_left,
        "broken": seen.n_broken,
        "stuck": seen.n_stuck,
        "prompt_tokens_per_s": round(seen.n_prompt / took_s, 1),
        "generated_tokens_per_s": round(seen.n_generated / took_s, 1),
        **waits,
        "before": before,
        "after": after,
        "replies_left": left,
    }


def show(found: dict[str, Any]) -> None:
    """Print a result for people."""
    print(f"{found['server']}: {found['clients']} clients, {found['seconds']} s: {found['answers']} answers, statuses", end=" ")
    print(f"{found['statuses']}, {found['left']} went before their answer, {found['broken']} broken, {found['stuck']} stuck")
    print(f"  {found['prompt_tokens_per_s']} prompt and {found['generated_tokens_per_s']} generated tokens/s in whole answers")
    for what in ("first_text", "whole"):
        median, p95, most = (found[f"{what}_{label}_s"] for label in ("median", "p95", "most"))
        print(f"  {what.replace('_', ' ')}: median {median} s, 95 % {p95} s, most {most} s")
    print("  " + ", ".join(f"{name} {value:,.0f} -> {found['after'][name]:,.0f}" for name, value in found["before"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--server", choices=("edge", "llama", "both"), default="both")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--patience", type=float, default=90, help="seconds after which a client waited in vain")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = [measure(name, options) for name in (("edge", "llama") if options.server == "both" else (options.server,))]
    for found in results:
        print(json.dumps(found)) if options.json else show(found)
    ours = [found for found in results if found["server"] == "edge"]
    is_leaking = any(one["after"][name] > one["before"][name] + SLACK for one in ours for name in ("threads", "files"))
    sys.exit(is_leaking or any(one["stuck"] or one["broken"] or one["replies_left"] for one in ours))


if __name__ == "__main__":
    main()
