"""The nodes of an ONNX graph, in the order in which they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from edge_convert.onnx.external import WeightFile

__all__ = ["Nodes"]

_CONTRIB = "com.microsoft"


class Nodes:
    """A list of nodes that grows.

    Args:
        file: for constants.

    Attributes:
        all: the nodes.
    """

    def __init__(self, file: WeightFile) -> None:
        self.all: list[NodeProto] = []
        self._file = file

    def add(
        self, op: str, name: str, inputs: Sequence[str], *, output: str = "", is_contrib: bool = False, **attributes: Any
    ) -> str:
        """Add a node with one output, and return its name: `output`, or "NAME/output_0"."""
        return self.add_several(op, name, inputs, [output or f"{name}/output_0"], is_contrib=is_contrib, **attributes)[0]

    def add_several(
        self, op: str, name: str, inputs: Sequence[str], outputs: Sequence[str], *, is_contrib: bool = False, **attributes: Any
    ) -> Sequence[str]:
        """Add a node with these outputs, "" for one that is not wanted, and return them."""
        self.all.append(helper.make_node(op, inputs, outputs, name, domain=_CONTRIB if is_contrib else None, **attributes))
        return outputs

    def integers(self, values: Sequence[int]) -> str:
        """Return the name of a constant, int64 [n]."""
        return self._file.constant(f"/model/constants/INT64/{list(values)}", np.array(values, np.int64))

    def number(self, kind: str, value: float) -> str:
        """Return the name of a constant without dimensions: of the type "INT64" or "FLOAT"."""
        dtype = {"INT64": np.int64, "FLOAT": np.float32}[kind]
        return self._file.constant(f"/model/constants/{kind}/{value}", np.array(value, dtype))
