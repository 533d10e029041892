"""Helpers of several tests of the Core ML exporter."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge.formats.coreml import PackageInfo, read_info
from edge_convert.coreml import runner, verify
from edge_convert.coreml.export import CoreMLOptions, export_coreml
from edge_convert.coreml.mil import MilModel, Precision
from edge_convert.coreml.runner import ComputeUnits, Functions, PackageRunner

CONTEXT, CHUNK = 96, 16


def export_tiny(checkpoint: Path, out: Path, **options: Any) -> Path:
    """A package with a small context."""
    chosen = CoreMLOptions(**({"context": CONTEXT, "chunk": CHUNK} | options))
    package, *_ = export_coreml(checkpoint, out, chosen, lambda what, share: None)
    return package


def open_runner(package: Path, precision: Precision = "fp16") -> PackageRunner:
    """The evaluator on both functions."""
    decode = MilModel(package, function_name="decode", precision=precision)
    prefill = MilModel(package, function_name="prefill", precision=precision)
    return PackageRunner(Functions(decode, prefill, info_of(package), "evaluator"))


def info_of(package: Path) -> PackageInfo:
    """Return the facts that a package states."""
    return read_info(MilModel(package, function_name="decode").user_defined_metadata, package.name)


def log_softmax(logits: Any) -> Any:
    """Over the last axis, float64."""
    values = np.asarray(logits, np.float64)
    values = values - values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def divergence(reference: Any, logits: Any) -> float:
    """Mean KL in nats of softmax(logits) from softmax(reference)."""
    log_p, log_q = log_softmax(reference), log_softmax(logits)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean())


def reference_logits(model: Any, tokens: Any) -> Any:
    """transformers' logits [tokens, vocab]."""
    import torch

    with torch.inference_mode():
        return model(torch.tensor(np.asarray(tokens)[None])).logits[0].numpy()


# -- child processes in the place of the one that predicts


def crash(*_: str) -> None:
    """Child: die."""
    os.abort()


def refuse(*_: str) -> None:
    """Child: refuse the program."""
    sys.exit("unsupported operation")


def hang(*_: str) -> None:
    """Child: never come to an end."""
    time.sleep(60)


def predict_with_the_evaluator(package: str, units: ComputeUnits) -> None:
    """Child: verify as on a Mac, with the evaluator in the place of Core ML."""
    import coremltools as ct

    runner.platform.system = lambda: "Darwin"
    ct.models.MLModel = lambda path, compute_units, function_name: MilModel(path, function_name=function_name)
    verify._placement = lambda model, units: {"MLCPUComputeDevice": 1.0}
    verify.predict_in_child(package, units)
