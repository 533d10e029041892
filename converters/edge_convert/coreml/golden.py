"""Logits stored in a package, so that any device can check its computation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge.formats.coreml import Golden, PackageInfo, TopLogits
from edge_convert.tokenizer_files import load_tokenizer

from .mil import MilModel
from .runner import Functions, PackageRunner

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["evaluate_golden", "golden_logits", "source_golden"]

_N_STEPS = 8
_N_PROMPT = 80
_TEXT = """A small model on a device has one advantage over a large one far away: it is always there. It answers on a train in a
tunnel, in a cellar, and on a ship in the middle of the ocean. Nobody else reads what it is asked. It needs no account and no
subscription, and the electricity that it uses is the owner's own. What it lacks is knowledge, and so it is best asked about
things that are in front of it: a letter to be answered, a table to be sorted, a sentence that does not sound right yet. When
somebody asks it for the capital of France, it says"""


def source_golden(folder: Path, model: Any, context: int) -> Golden:
    """Compute the golden logits of a checkpoint, in float32.

    Args:
        folder: the checkpoint, for its tokenizer.
        model: the checkpoint as a transformers model, its weights unchanged.
        context: of the package; the prompt is truncated so that it fits with its continuation.
    """
    import torch

    ids = [token % model.config.vocab_size for token in load_tokenizer(folder)(_TEXT)["input_ids"]]
    prompt = ids[-min(_N_PROMPT, context - _N_STEPS) :]
    tokens, found = list(prompt), []
    with torch.inference_mode():
        for _ in range(_N_STEPS):
            logits = model(torch.tensor([tokens])).logits[0, -1].float().numpy()
            found.append(TopLogits.of(logits))
            tokens.append(int(logits.argmax()))
    return Golden(prompt=prompt, continuation=tokens[len(prompt) :], source=found)


def golden_logits(runner: PackageRunner, golden: Golden) -> Iterator[NDArray[np.float32]]:
    """Yield the logits after the golden prompt, then after each token of its continuation but the last."""
    yield runner.feed(golden.prompt)
    for token in golden.continuation[:-1]:
        yield runner.feed([token])


def evaluate_golden(package: Path, info: PackageInfo) -> PackageInfo:
    """Return the description with the golden logits of the package itself, evaluated with rounding to fp16."""
    functions = Functions(
        MilModel(package, function_name="decode"), MilModel(package, function_name="prefill"), info, "evaluator"
    )
    runner = PackageRunner(functions)
    found = [TopLogits.of(logits) for logits in golden_logits(runner, info.golden)]
    return msgspec.structs.replace(info, golden=msgspec.structs.replace(info.golden, package=found))
