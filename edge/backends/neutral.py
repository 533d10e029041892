"""Keys and values in a layout that engines share: what one engine has prefilled, another one goes on from.

The payload of such a block, after the header that every block has (cells_backend.py), for n tokens:

    48   who computed it: the engine's name (16 bytes), and a digest of all that changes its rounding (32 bytes)
    24 + 12 n   free
    for the keys of each layer, then for the values of each layer:
      12   free
      n x n_head_kv x head_dim numbers, float16: a row for each token

Keys are rotated for their positions, and the numbers of a head are in the order of the rows of the model file (a GGUF of a
Llama has pairs of the rotation beside each other, other architectures have them half a head apart). The free bytes are where
llama.cpp's own state has its fields, so that it exports and imports such a block without another copy; other engines write
zeros there, and nobody reads them but the engine that wrote them.

Numbers of two engines differ in their last bits, since they round differently: docs/kv.md has figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edge.kv.blocks import fingerprint

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["MAGIC", "MAKER_BYTES", "TENSOR_HEAD_BYTES", "NeutralLayout", "describe_maker", "free_bytes", "maker_id"]

MAGIC = b"EDGENKV1"
_NAME_BYTES = 16
MAKER_BYTES = _NAME_BYTES + 32
TENSOR_HEAD_BYTES = 12
_ROUNDING = frozenset({
    "backend", "version", "instructions", "processor", "chunk_size", "n_ubatch", "extra_buffers", "unified", "gpu_layers",
    "flash_attention", "prefill",
})  # fmt: skip
"""Fields of `Backend.kv_identity` that change how the numbers of such a block were rounded, and nothing about their meaning. An
engine's field that is not named here keeps its blocks apart."""


@dataclass(frozen=True, slots=True)
class NeutralLayout:
    """Numbers of a model whose blocks have this layout.

    Attributes:
        n_layer, n_head_kv, head_dim: of keys and values, the same for all layers.
        MAX_DIFFERENCE: most that the keys or values of a layer may differ between engines, as a share of their norm: llama.cpp
            and OpenVINO differ by 0.05 with SmolLM2, another rotation of positions by more than this at once.
    """

    MAX_DIFFERENCE: ClassVar[float] = 0.15
    n_layer: int
    n_head_kv: int
    head_dim: int

    def __str__(self) -> str:
        return f"{MAGIC.decode('ascii')} f16 {self.n_layer}x{self.n_head_kv}x{self.head_dim}"

    @property
    def row_bytes(self) -> int:
        """Bytes of the keys of one token in one layer."""
        return 2 * self.n_head_kv * self.head_dim

    def size(self, n_tokens: int) -> int:
        """Return the bytes behind the engine's name."""
        return free_bytes(n_tokens) + 2 * self.n_layer * (TENSOR_HEAD_BYTES + n_tokens * self.row_bytes)

    def tensors(self, payload: npt.NDArray[np.uint8], n_tokens: int) -> npt.NDArray[np.uint8]:
        """Return the tensors with their free bytes, without a copy.

        Args:
            payload: bytes behind the engine's name.
            n_tokens: tokens in it.

        Returns:
            Shape (2 x layers, 12 + n_tokens x row_bytes), uint8: keys of each layer, then values of each layer.
        """
        return payload[free_bytes(n_tokens) :].reshape(2 * self.n_layer, -1)

    def numbers(self, payload: npt.NDArray[np.uint8], n_tokens: int) -> npt.NDArray[np.float16]:
        """Return the numbers, without a copy. Arguments as for `tensors`.

        Returns:
            Shape (2, layers, n_tokens, n_head_kv, head_dim), float16: keys, then values.
        """
        import numpy as np

        rows = self.tensors(payload, n_tokens).view(np.float16)[:, TENSOR_HEAD_BYTES // 2 :]
        return rows.reshape(2, self.n_layer, n_tokens, self.n_head_kv, self.head_dim)

    def difference(self, one: bytes | memoryview, other: bytes | memoryview, n_tokens: int) -> float:
        """Return the largest difference of a layer's keys or values in two blocks, as a share of the norm of the other one's.

        Args:
            one, other: whole blocks of the same tokens, of any engines.
            n_tokens: tokens in each.
        """
        import numpy as np

        def rows(block: bytes | memoryview) -> npt.NDArray[np.float32]:
            payload = np.frombuffer(block, np.uint8)[-self.size(n_tokens) :]
            return self.numbers(payload, n_tokens).astype(np.float32).reshape(2, self.n_layer, -1)

        found, wanted = rows(one), rows(other)
        shares = np.linalg.norm(found - wanted, axis=-1) / np.maximum(np.linalg.norm(wanted, axis=-1), 1e-9)
        return float(shares.max())

    @staticmethod
    def common(identity: Mapping[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        """Return the fields of `Backend.kv_identity` that engines must have in common to use each other's blocks."""
        return {name: value for name, value in identity.items() if name not in _ROUNDING}

    def clear(self, payload: npt.NDArray[np.uint8], n_tokens: int) -> None:
        """Write zeros where bytes are free. Arguments as for `tensors`."""
        payload[: free_bytes(n_tokens)] = 0
        self.tensors(payload, n_tokens)[:, :TENSOR_HEAD_BYTES] = 0


def free_bytes(n_tokens: int) -> int:
    """Return the number of free bytes before the first tensor."""
    return 24 + 12 * n_tokens


def maker_id(identity: Mapping[str, str | int | float | bool]) -> bytes:
    """Return what a block says of the engine that computed it.

    Args:
        identity: of the engine, see `Backend.kv_identity`.
    """
    name = str(identity["backend"]).encode("ascii")[:_NAME_BYTES]
    return name.ljust(_NAME_BYTES, b"\0") + fingerprint(identity)


def describe_maker(maker: bytes) -> str:
    """Return the name and the beginning of the digest: "openvino 3f2a91"."""
    name = maker[:_NAME_BYTES].rstrip(b"\0").decode("ascii", "replace")
    return f"{name} {maker[_NAME_BYTES:].hex()[:6]}"
