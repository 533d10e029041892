"""The formats that a checkpoint can become, a row each: the module that plans its steps, and the packages that they need."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from edge.errors import BackendUnavailableError
from edge.names import Format

if TYPE_CHECKING:
    from edge_convert.facts import Facts, Request
    from edge_convert.pipeline import Step

__all__ = ["TARGETS", "Target", "check_packages"]

_PACKAGES = ("transformers", "safetensors", "gguf", "ml_dtypes")
"""Modules that every conversion imports."""


class Target(NamedTuple):
    """A format that a checkpoint can become.

    Attributes:
        module: defines `make_steps(facts, request)`; imported when the format is asked for.
        tools: distributions whose versions decide the result.
        packages: modules that it imports, besides those of every conversion.
    """

    module: str
    tools: tuple[str, ...]
    packages: tuple[str, ...] = ()

    def make_steps(self, facts: Facts, request: Request) -> list[Step]:
        """Plan the steps from a model to this format.

        Raises:
            UsageError: the format does not have what the request asks for.
        """
        steps: list[Step] = import_module(self.module).make_steps(facts, request)
        return steps


TARGETS: dict[Format, Target] = {
    "gguf": Target("edge_convert.gguf.steps", ("gguf", "llama_cpp_python", "numpy"), ("torch",)),
    "onnx": Target(
        "edge_convert.onnx.steps",
        ("gguf", "numpy", "onnx", "transformers"),
        ("onnx", "onnxruntime"),
    ),
    "coreml": Target("edge_convert.coreml.steps", ("coremltools", "torch", "transformers", "numpy"), ("coremltools", "torch")),
}


def check_packages(formats: Iterable[Format], *more: str) -> None:
    """Refuse a conversion to these formats that lacks packages, or `more` modules that it imports.

    Raises:
        BackendUnavailableError: some are not installed.
    """
    from importlib.util import find_spec

    wanted = dict.fromkeys([*_PACKAGES, *(package for form in formats for package in TARGETS[form].packages), *more])
    missing = [package for package in wanted if find_spec(package) is None]
    if missing:
        extra = "distill" if "peft" in missing else "convert"
        raise BackendUnavailableError(
            f"Converting needs packages that are not installed: {', '.join(missing)}.",
            f"Install them with: pip install 'edge-assistant[{extra}]'",
        )
