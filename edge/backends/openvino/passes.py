"""A compiled model, and passes over several sequences at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.backends.openvino.blocks import BLOCK, Blocks
from edge.backends.openvino.compiled import Source, compile_model
from edge.backends.openvino.graph import NoPagedAttentionError, check_kinds, count_kinds
from edge.backends.openvino.library import find_device, infer, wrap_errors
from edge.backends.openvino.shape import read_shape
from edge.backends.openvino.stateful import StatefulPasses
from edge.backends.openvino.tensors import Tensors
from edge.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from edge.formats.gguf import GGUFHeader
    from edge.plan.receipt import Plan

__all__ = ["KV_TYPES", "Passes", "Piece", "open_passes"]

_IN_FLOATS = ("bf16", "f32")
"""Types of keys and values with which inputs of products stay floats; with others they are rounded to 8 bits."""

KV_TYPES = ("f16", "u8", *_IN_FLOATS)
_KV_GROUP = 32  # numbers of a key or value in 8 bits that share a scale and a zero point
_TRIED = 48  # tokens; more than one block

Piece = tuple[int, int, Sequence[int], int]
"""Tokens that a pass appends: (sequence, positions that it has, tokens, of how many at the end logits are wanted)."""


def open_passes(ov: Any, header: GGUFHeader, plan: Plan, cache_dir: Path | None = None) -> tuple[Passes | StatefulPasses, str]:
    """Return what runs a model, and which attention it has, for the receipt.

    Args:
        ov: the module openvino.
        header: of the file.
        plan: path, accelerator, threads, KV types, cells and sequences.
        cache_dir: as in `compile_model`.

    Raises:
        UsageError: keys or values cannot have the type of the plan.
        UnsupportedError: the model is of an unknown kind.
        BackendError: OpenVINO did not recognise parts of the model, and would be slow.
        ModelTooLargeError: memory ran out.
    """
    if plan.kv_type_k != plan.kv_type_v or plan.kv_type_k not in KV_TYPES:
        raise UsageError(
            f"The openvino backend cannot keep keys as {plan.kv_type_k} and values as {plan.kv_type_v}.",
            f"It knows {', '.join(KV_TYPES)}, the same for both: --kv-type f16",
        )
    path = plan.artifact.path
    shape = read_shape(header, path, plan.n_ctx)
    tensors = Tensors(path, header, in_floats=plan.kv_type_k in _IN_FLOATS)
    if plan.accelerator != "cpu":
        device = find_device(ov, plan.accelerator)
        properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "KV_CACHE_PRECISION": plan.kv_type_k}
        if plan.kv_type_k == "f32":  # otherwise the device's own choice
            properties |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        passes = StatefulPasses(ov, shape, tensors, plan, device=device, properties=properties)
        return passes, f"stateful: on {passes.device_name}, which has not been tested"
    try:
        return Passes(ov, Source(header, shape, tensors, plan), cache_dir), "paged"
    except NoPagedAttentionError as error:
        why = error.message
    return StatefulPasses(ov, shape, tensors, plan, device="CPU", properties=_properties(plan)), f"stateful: {why}"


class Passes:
    """Compiles a model and runs passes over it.

    Args:
        ov: the module openvino.
        source: the model, and the plan with its threads, KV types, cells and sequences.
        cache_dir: as in `compile_model`.

    Attributes:
        blocks: keys and values.
        is_stored: as in Compiled.
        kinds: operations of the compiled model, by kind.

    Raises:
        NoPagedAttentionError: OpenVINO has none, or none for this model.
        BackendError: OpenVINO did not recognise parts of the model, and would be slow.
        ModelTooLargeError: memory ran out.
    """

    def __init__(self, ov: Any, source: Source, cache_dir: Path | None = None) -> None:
        self._ov, self._n_seq = ov, source.plan.n_seq
        found = compile_model(ov, source, _properties(source.plan), cache_dir=cache_dir, is_same=self._is_same)
        self.is_stored = found.is_stored
        self.kinds = count_kinds(ov, found.model)
        check_kinds(self.kinds, found.expected)
        self._open(found.model)
        self.allocate(source.plan.n_ctx)

    def _open(self, compiled: Any) -> None:
        self._ports = {
            port.get_any_name(): (
                port.get_element_type(),
                tuple(dim.get_length() for dim in list(port.get_partial_shape())[1:]),
            )
            for port in compiled.inputs
            if "_cache." in port.get_any_name()
        }
        self._request = compiled.create_infer_request()

    def _is_same(self, one: Any, other: Any) -> bool:
        """Return whether two compiled models compute the same bits, of a prompt and of a token behind it, as fast."""
        ours, theirs = (count_kinds(self._ov, compiled) for compiled in (one, other))
        if any(ours[kind] != theirs[kind] for kind in {*ours, *theirs} if kind.startswith("FullyConnected")):
            return False  # weights of 4 bits became 8
        found = []
        for compiled in (one, other):
            self._open(compiled)
            self.allocate(_TRIED)
            prompt, last = list(range(1, _TRIED - 1)), [_TRIED]
            rows = [self.run([(0, 0, prompt, len(prompt))]), self.run([(0, len(prompt), last, 1)])]
            found.append([row[0].copy() for row in rows if row is not None])
            self.close()
        return all(np.array_equal(ours, theirs) for ours, theirs in zip(*found, strict=True))

    def allocate(self, n_ctx: int) -> None:
        """Replace keys and values by empty ones of so many cells.

        Raises:
            ModelTooLargeError: there is no memory for them; nothing has changed.
        """
        with wrap_errors("allocate keys and values"):
            blocks = Blocks(self._ov, self._ports, n_ctx, self._n_seq)
            for name, tensor in blocks.tensors.items():
                self._request.set_tensor(name, tensor)
        self.blocks = blocks

    def run(
        self, pieces: Sequence[Piece], should_stop: Callable[[], bool] | None = None
    ) -> list[npt.NDArray[np.float32]] | None:
        """Append tokens to sequences in one pass.

        Args:
            pieces: one for each sequence.
            should_stop: True stops the pass, whose keys and values count for nothing then.

        Returns:
            For each piece its logits, shape (wanted, n_vocab), good until the next pass; None when the pass was stopped.

        Raises:
            BackendError: the engine failed.
        """
        for seq_id, start, tokens, _ in pieces:
            self.blocks.extend(seq_id, start, len(tokens))
        lengths = np.array([len(tokens) for _, _, tokens, _ in pieces])
        ends = np.cumsum(lengths)
        lists = [self.blocks.numbers(seq_id)[: -(-(start + len(tokens)) // BLOCK)] for seq_id, start, tokens, _ in pieces]
        inputs = {
            "input_ids": np.concatenate([np.asarray(tokens, np.int64) for _, _, tokens, _ in pieces]),
            "position_ids": np.concatenate([np.arange(start, start + len(tokens)) for _, start, tokens, _ in pieces]),
            "rows": np.concatenate([np.arange(end - wanted, end) for end, (_, _, _, wanted) in zip(ends, pieces, strict=True)]),
            "past_lens": np.array([start for _, start, _, _ in pieces], np.int32),
            "subsequence_begins": np.concatenate([[0], ends]).astype(np.int32),
            "block_indices": np.array([number for numbers in lists for number in numbers], np.int32),
            "block_indices_begins": np.cumsum([0, *map(len, lists)]).astype(np.int32),
            "max_context_len": np.array(max(start + len(tokens) for _, start, tokens, _ in pieces), np.int32),
        }
        with wrap_errors("compute"):
            for name, values in inputs.items():
                self._request.set_tensor(name, self._ov.Tensor(values, shared_memory=True))
            if not infer(self._request, len(inputs["input_ids"]), should_stop):
                return None
            logits = self._request.get_output_tensor(0).data
        return np.split(logits, np.cumsum([wanted for _, _, _, wanted in pieces])[:-1])

    def close(self) -> None:
        """Free the model, and keys and values."""
        del self._request, self.blocks


def _properties(plan: Plan) -> dict[str, Any]:
    kv_type = plan.kv_type_k
    # Each position has scales of its own. Keys would be scaled by channel, so that no position of a block could move alone.
    by_token = {"KEY_CACHE_QUANT_MODE": "BY_TOKEN", "KEY_CACHE_GROUP_SIZE": _KV_GROUP, "VALUE_CACHE_GROUP_SIZE": _KV_GROUP}
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": plan.n_threads,
        # Attention on keys and values in bfloat16 is computed in it, and then the plug-in computes everything in it.
        "INFERENCE_PRECISION_HINT": "bf16" if kv_type == "bf16" else "f32",
        "KV_CACHE_PRECISION": kv_type,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0 if kv_type in _IN_FLOATS else 32,  # inputs of products in 8 bits
        **(by_token if kv_type == "u8" else {}),
    }
