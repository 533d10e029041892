"""ONNX folders made by `edge convert`, in edge's own backend, held to transformers' logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the extra [convert]")

from edge.backends.onnx.backend import OnnxBackend
from edge.formats.artifact import open_artifact
from tests.contract.entries import make_plan

from .test_export import KINDS, N_PROMPT, load_transformers, tokens_of, transformers_logits

N_OTHER = 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_edge_computes_what_transformers_does(
    kind: str, tiny_checkpoint: Callable[[str], Path], tiny_onnx: Callable[[str, str], Path]
) -> None:
    """The prompt in chunks, then token by token beside another, shorter sequence that gets the same tokens."""
    checkpoint, folder = tiny_checkpoint(kind), tiny_onnx(kind, "fp32")
    tokens = tokens_of(checkpoint)
    model = load_transformers(checkpoint)
    reply = tokens[N_PROMPT:]
    prompts = {0: tokens[:N_OTHER], 1: tokens[:N_PROMPT]}
    expected = {seq_id: transformers_logits(model, [*prompt, *reply]) for seq_id, prompt in prompts.items()}
    size = float(np.abs(expected[1]).max())
    plan = make_plan(
        folder, backend="onnx", artifact=open_artifact(folder), kv_type_k="f32", kv_type_v="f32", n_seq=2, n_ubatch=8, n_ctx=64
    )
    with OnnxBackend(plan) as backend:
        told = backend.info.details["several replies"]
        assert told == "in one pass" or (kind == "phi3-long" and "from some length on" in told)
        for seq_id, prompt in prompts.items():
            backend.prefill(seq_id, prompt)
        for n, token in enumerate([*reply, None]):
            for seq_id, prompt in prompts.items():
                np.testing.assert_allclose(backend.logits(seq_id), expected[seq_id][len(prompt) - 1 + n], atol=2e-4 * size)
            if token is not None:
                backend.decode([(seq_id, token) for seq_id in prompts])
