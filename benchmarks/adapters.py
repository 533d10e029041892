"""What adapters cost: processor time of a decoded token with none, one and two, and of going from one group to another.

    EDGE_TEST_MODEL=model.gguf python benchmarks/adapters.py

The variants alternate in every round, and the least time counts: other programs only ever add to it.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from edge.adapters import Mix
from edge.backends.base import Backend, open_backend
from edge.device import probe
from edge.formats.artifact import open_artifact
from edge.formats.gguf import read_header
from edge.formats.gguf_adapter import read_adapter
from edge.plan import PlanRequest, make_plan

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.adapters import write_adapter

A, B, BOTH = ((0, 1.0),), ((1, 1.0),), ((0, 1.0), (1, 0.5))
VARIANTS: dict[str, list[Mix]] = {
    "no adapter": [()],
    "one": [A],
    "two": [BOTH],
    "one and none in turn": [A, ()],
    "one and another in turn": [A, B],
}
ROUNDS, TOKENS = 10, 16


def decode_ms(backend: Backend, mixes: list[Mix], n_before: int) -> float:
    """Return the median processor time of a token, in milliseconds."""
    times = []
    for number in range(TOKENS):
        began = time.process_time()
        backend.set_adapters(mixes[number % len(mixes)])
        backend.decode([(0, 100 + number)])
        times.append((time.process_time() - began) * 1000)
    backend.rewind(0, n_before)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    model = Path(os.environ["EDGE_TEST_MODEL"])
    header = read_header(model)
    with tempfile.TemporaryDirectory() as folder:
        files = [write_adapter(Path(folder) / f"{name}.gguf", model, seed=ord(name), rank=8) for name in "ab"]
        adapters = tuple(read_adapter(path, header, name=path.stem, scale=1.0) for path in files)
        plan = make_plan(probe(), open_artifact(model), PlanRequest(context=512, n_seq=2, threads=1))
        with open_backend(replace(plan, adapters=adapters)) as backend:
            backend.prefill(0, tokens := backend.tokenizer.tokenize("The capital of France is a place where people " * 6))
            found = dict.fromkeys(VARIANTS, float("inf"))
            for _ in range(ROUNDS):
                for name, mixes in VARIANTS.items():
                    found[name] = min(found[name], decode_ms(backend, mixes, len(tokens)))
    base = found["no adapter"]
    for name, ms in found.items():
        print(f"{name:<26} {ms:6.2f} ms a token  {ms / base:5.2f}")


if __name__ == "__main__":
    main()
