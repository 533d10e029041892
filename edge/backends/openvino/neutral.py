"""Blocks of this engine as rows of the neutral layout that engines share (edge/backends/neutral.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge.backends.neutral import NeutralLayout
    from edge.formats.gguf import GGUFHeader
    from edge.plan.receipt import Plan

__all__ = ["neutral_layout", "neutral_rows"]


def neutral_layout(header: GGUFHeader, plan: Plan) -> NeutralLayout | None:
    """Return the layout of the blocks of a model, or None where other engines cannot use its keys and values."""
    from edge.backends.neutral import NeutralLayout

    if (plan.kv_type_k, plan.kv_type_v) != ("f16", "f16") or header.sliding_window:
        return None
    assert isinstance(header.n_head_kv, int)  # else the graph is not right for it
    return NeutralLayout(header.n_layer, header.n_head_kv, header.head_dim_k)


def neutral_rows(
    layout: NeutralLayout, payload: npt.NDArray[np.uint8], n: int, *, is_interleaved: bool
) -> dict[str, npt.NDArray[np.generic]]:
    """Return the payload of a block as arrays for `Blocks.read` and `Blocks.write`, without a copy.

    Args:
        layout, payload, n: as for `NeutralLayout.numbers`.
        is_interleaved: pairs of the rotation are neighbours there; this engine has them half a head apart.
    """
    numbers = layout.numbers(payload, n)
    found: dict[str, npt.NDArray[np.generic]] = {}
    for layer in range(layout.n_layer):
        keys, values = (part[layer].transpose(1, 0, 2)[:, :, None] for part in numbers)
        if is_interleaved:
            keys = keys.reshape(*keys.shape[:2], -1, 2).swapaxes(2, 3)
        found[f"key_cache.{layer}"], found[f"value_cache.{layer}"] = keys, values
    return found
