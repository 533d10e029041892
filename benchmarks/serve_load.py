"""Many clients at `edge serve`: long and short prompts, streamed or not, and some that go in the middle.

    python benchmarks/serve_load.py --model smollm2-135m --seconds 120 --clients 32

Prints how long they waited, how many were refused, and what of memory, threads and files was left at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

EDGE = Path(sys.executable).with_name("edge")
WORDS = ("river", "stone", "lamp", "green", "seven", "orbit", "paper", "quiet", "morning", "engine", "salt", "window")


@dataclass
class Seen:
    """What the clients saw."""

    statuses: dict[int, int] = field(default_factory=dict)
    n_left: int = 0
    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)


async def visit(address: tuple[str, int], choose: random.Random, seen: Seen) -> None:
    """Ask once, and perhaps go before the answer is there."""
    n_words = choose.choice((5, 5, 5, 40, 400))
    prompt = " ".join(choose.choice(WORDS) for _ in range(n_words))
    body = json.dumps(
        {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}],
            "max_tokens": choose.choice((8, 32)),
            "stream": choose.random() < 0.7,
        }
    )
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        leaves_after_s = choose.uniform(0, 3) if choose.random() < 0.25 else None
        status = int((await asyncio.wait_for(reader.readline(), leaves_after_s)).split()[1])
        seen.statuses[status] = seen.statuses.get(status, 0) + 1
        if status == 429:
            await asyncio.sleep(0.5)
        while data := await asyncio.wait_for(reader.read(65536), leaves_after_s):
            if b"content" in data and status == 200 and b'"content":""' not in data:
                seen.first_s.append(time.perf_counter() - began)
                break
        while await asyncio.wait_for(reader.read(65536), leaves_after_s):
            pass
        if status == 200:
            seen.whole_s.append(time.perf_counter() - began)
    except asyncio.TimeoutError:
        seen.n_left += 1
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def run(address: tuple[str, int], n_clients: int, seconds: float) -> Seen:
    """Have clients ask one thing after another for a while."""
    seen, until = Seen(), time.monotonic() + seconds

    async def client(number: int) -> None:
        choose = random.Random(number)
        while time.monotonic() < until:
            await visit(address, choose, seen)

    await asyncio.gather(*map(client, range(n_clients)))
    return seen


def state_of(process: psutil.Process) -> dict[str, float]:
    """Return memory in MB, threads and open files of the server."""
    with process.oneshot():
        return {"MB": process.memory_info().rss / 1e6, "threads": process.num_threads(), "files": process.num_fds()}


def percentile(values: list[float], share: float) -> float:
    """Return a percentile; 0 without values."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    command = [EDGE, "serve", "-m", options.model, "--context", "4096", "--port", "0", "--json", "--log", "off"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = urlsplit(json.loads(process.stdout.readline())["url"])
        address = (url.hostname or "", url.port or 0)
        asyncio.run(run(address, 4, 5))  # the model is loaded, and all of it was used once
        server = psutil.Process(process.pid)
        time.sleep(2)
        before = state_of(server)
        seen = asyncio.run(run(address, options.clients, options.seconds))
        time.sleep(5)
        after = state_of(server)
        process.terminate()
        code = process.wait(60)
    print(f"{options.clients} clients, {options.seconds:g} s: statuses {seen.statuses}, {seen.n_left} went before their answer")
    for name, values in (("first text", seen.first_s), ("whole answer", seen.whole_s)):
        print(
            f"{name}: median {percentile(values, 0.5):.2f} s, 95 % {percentile(values, 0.95):.2f} s, most {max(values):.2f} s"
        )
    for name, value in before.items():
        print(f"{name}: {value:,.0f} before, {after[name]:,.0f} after")
    print(f"exit code {code}")


if __name__ == "__main__":
    main()
