"""A reply with a seed, asked for again: the same, wherever the beginning of its prompt comes from."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge.assistant import Assistant, DiskCache
from edge.backends.base import open_backend
from edge.kv.open import model_fingerprint
from edge.kv.store import BlockStore, StoreOptions
from edge.plan import Plan
from edge.types import Sampling
from tests.contract.entries import make_plan

NO_LETTERS = dict.fromkeys((*range(32), *range(127, 256)), -math.inf)  # a random model generates bytes that are not text
N_PROMPTS = 12


def open_assistant(plan: Plan, directory: Path) -> Assistant:
    backend = open_backend(plan)
    blocks = BlockStore(directory, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, sync=False))
    return Assistant(backend, plan, disk=DiskCache(blocks, model_fingerprint(backend, plan.artifact)))


@pytest.mark.parametrize("engine", ["llamacpp", "openvino"])
def test_a_seed_repeats_a_reply_from_memory_and_from_the_disk(
    tiny_model: Callable[[str], Path], tmp_path: Path, engine: str
) -> None:
    pytest.importorskip(engine if engine == "openvino" else "llama_cpp")
    plan = replace(make_plan(tiny_model("llama q4_0")), backend=engine, n_ctx=1024, n_seq=1, n_ubatch=128)
    chance = random.Random(3)
    prompts = ["".join(chance.choices("abcdefgh ijk lmnop", k=chance.randrange(60, 320))) for _ in range(N_PROMPTS)]
    sampling = [Sampling(temperature=1.5, seed=seed, max_tokens=40, logit_bias=NO_LETTERS) for seed in range(N_PROMPTS)]
    said = []
    for _ in range(2):  # the second time in another process
        with open_assistant(plan, tmp_path / "kv") as ai:
            for prompt, settings in zip(prompts, sampling, strict=True):
                once = ai.generate(prompt, sampling=settings)
                once.wait()
                again = ai.generate(prompt, sampling=settings)
                said.append([once.text, again.wait()])
                assert again.usage.n_reused == again.usage.n_prompt - 1
    first, later = said[:N_PROMPTS], said[N_PROMPTS:]
    assert len({text for texts in first for text in texts}) >= N_PROMPTS - 1, "other seeds say something else"
    assert [texts[0] for texts in first] == [texts[1] for texts in first]
    assert first == later
