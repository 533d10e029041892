"""How much memory an ONNX or Core ML model takes: it is computed in one place, and every sequence has a buffer of its own.

Weights, keys and values follow from the files. What onnxruntime takes besides was measured with SmolLM2-135M in int4 on x86-64
(onnxruntime 1.32): 171 MiB without the pages of the mapped file, of which 108 are the weights, packed anew for the CPU; 22 MiB
more for a chunk of 512 tokens. OpenVINO 2025.4 took 16 times the bytes of the weights: 1.9 GiB at the most for
the same model. What Core ML takes besides has not been measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.memory import Footprint, Parts

if TYPE_CHECKING:
    from edge.memory import Layout
    from edge.model_facts import ModelFacts

__all__ = ["Whole"]

_FIXED_BYTES = 32 << 20
_TOKENIZER_BYTES = 500  # a token, in the tables of the tokenizers package
_ACTIVATIONS = 20  # numbers a token and unit of width that are alive at the widest point of a pass
_UNKNOWN_WIDTH = 2048
_DEVICE_FIXED_BYTES = 512 << 20  # CUDA's context and libraries; not measured here
_BITS = {"int2": 2, "int4": 4, "int8": 8, "f16": 16, "bf16": 16}  # of a weight; others are floats of 32
_OPENVINO_BITS = 64  # that a weight takes there, whatever it was kept as; measured with int4, not explained


@dataclass(frozen=True, slots=True)
class Whole:
    """A model that is computed in one place.

    Attributes:
        facts: the model.
        n_spare: buffers of keys and values beside one a sequence.
    """

    facts: ModelFacts
    n_spare: int = 0

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return self.facts.n_layer

    def cell_bytes(self, kv_type_k: str, kv_type_v: str) -> int:
        """Bytes that one token takes in the KV cache; it can be kept in one way only."""
        return self.facts.cell_bytes

    def footprint(self, layout: Layout) -> Footprint:
        """Memory that it takes with these settings. Every sequence may come to have the whole context."""
        facts = self.facts
        cells = facts.n_ctx_max or layout.n_ctx
        kv = (layout.n_seq + self.n_spare) * cells * facts.cell_bytes
        activations = layout.n_ubatch * 4 * _ACTIVATIONS * (facts.n_embd or _UNKNOWN_WIDTH)
        tables = _FIXED_BYTES + facts.n_vocab * (_TOKENIZER_BYTES + 4 * layout.n_seq)
        if not layout.gpu_layers:
            weights = facts.weights_bytes
            if layout.accelerator == "openvino":
                weights *= _OPENVINO_BITS // _BITS.get(facts.quantisation, 32)
            return Footprint(Parts(weights, kv, activations + tables), Parts(0, 0, 0))
        fixed = _DEVICE_FIXED_BYTES if layout.accelerator != "metal" else 0
        return Footprint(Parts(0, 0, tables), Parts(facts.weights_bytes, kv, activations + fixed))
