"""Paged keys and values against a slow reference: whatever is shared, rewound and written, each sequence reads its own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

ov: Any = pytest.importorskip("openvino")

from edge.backends.openvino.blocks import BLOCK, Blocks  # noqa: E402

HEADS, WIDTH, N_SEQ = 2, 4, 4


def make(n_ctx: int) -> Blocks:
    return Blocks(ov, {f"{part}_cache.0": (ov.Type.f32, (HEADS, BLOCK, WIDTH)) for part in ("key", "value")}, n_ctx, N_SEQ)


def rows(values: list[float]) -> dict[str, Any]:
    """Positions whose numbers all equal a value, as `Blocks.write` takes them."""
    one = np.repeat(np.array(values, np.float32)[None, :, None], HEADS, 0).repeat(WIDTH, 2)
    return {"key_cache.0": one[:, :, None], "value_cache.0": -one.reshape(HEADS, -1, WIDTH // 2, 2).swapaxes(2, 3)}


def read(blocks: Blocks, seq_id: int, n_tokens: int) -> list[float]:
    found = blocks.rows(np.empty(n_tokens * blocks.row_bytes(), np.uint8), n_tokens)
    blocks.read(seq_id, 0, n_tokens, found)
    keys, values = found["key_cache.0"], found["value_cache.0"]
    np.testing.assert_array_equal(keys, -values)
    assert (keys == keys[:1, :, :, :1]).all()
    return [float(value) for value in keys[0, :, 0, 0]]


@pytest.mark.parametrize("seed", range(6))
def test_random_lives_of_sequences_that_share(seed: int) -> None:
    rng = random.Random(seed)
    n_ctx = 256
    blocks, expected, counter = make(n_ctx), [[] for _ in range(N_SEQ)], 0.0  # type: list[list[float]], Blocks, float
    for _ in range(600):
        seq_id, action = rng.randrange(N_SEQ), rng.random()
        mine = expected[seq_id]
        if action < 0.5:
            n_cells = len({id(value) for sequence in expected for value in sequence})
            n_new = min(rng.choice([1, 1, 2, 17, 40]), n_ctx - n_cells)
            if n_new > 0:
                new = [counter := counter + 1 for _ in range(n_new)]
                blocks.extend(seq_id, len(mine), n_new)
                blocks.write(seq_id, len(mine), len(mine) + n_new, rows(new))
                mine += new
        elif action < 0.75:
            n_keep = rng.randrange(len(mine) + 1)
            blocks.truncate(seq_id, n_keep)
            del mine[n_keep:]
        else:
            target = rng.randrange(N_SEQ)
            if target != seq_id and mine:
                n_shared = rng.randrange(1, len(mine) + 1)
                blocks.truncate(target, 0)
                blocks.share(seq_id, target, n_shared)
                expected[target] = mine[:n_shared]
        for number, sequence in enumerate(expected):
            if sequence:
                assert read(blocks, number, len(sequence)) == sequence
    for seq_id in range(N_SEQ):
        blocks.truncate(seq_id, 0)
    n_blocks = -(-n_ctx // BLOCK) + 2 * N_SEQ
    for seq_id in range(N_SEQ):  # every block is free again, each of them once
        blocks.extend(seq_id, 0, n_blocks // N_SEQ * BLOCK)
    taken = [number for seq_id in range(N_SEQ) for number in blocks.numbers(seq_id)]
    assert sorted(taken) == list(range(n_blocks))
