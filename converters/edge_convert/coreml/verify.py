"""`edge convert verify PACKAGE`: checks the computation of a Core ML package on this machine.

On a Mac by real prediction, in a child process since a compute unit that refuses a program may crash the process; elsewhere by
the evaluator. Both are compared with the logits that the exporter stored in the package.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import msgspec

from edge.child import python_command, run_child
from edge.errors import BackendError, ModelNotFoundError, UsageError
from edge.formats.coreml import find_files
from edge_convert.evaluate.logits import model_in
from edge_convert.manifest import check_files

from .golden import golden_logits
from .runner import ComputeUnits, Engine, Functions, PackageRunner, load_functions

__all__ = ["ComputeUnits", "Engine", "VerifyReport", "verify"]

COMPUTE_UNITS: tuple[ComputeUnits, ...] = get_args(ComputeUnits)

_SAME = 0.02
"""KL divergence in nats that rounding explains; wrong weights or a lost cache give more."""
_TIMEOUT_S = 1800.0
_CHILD = "edge_convert.coreml.verify:predict_in_child"


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a verification.

    Attributes:
        engine: "coreml" (real prediction) or "evaluator".
        compute_units: that Core ML was allowed to use; None with the evaluator.
        variant: of the package.
        encodings: number of its matrices in each encoding.
        n_read: tokens that were read.
        n_positions: places where logits were compared.
        divergence: mean KL in nats to the exporter's evaluation of this package.
        source_divergence: mean KL in nats to the checkpoint in float32.
        source_agreement: share of places where the likeliest token is the checkpoint's.
        seconds_per_token: mean time of a decode step.
        placement: share of operations that Core ML plans for each unit; empty with the evaluator.
        is_good: whether rounding explains the divergence.
        n_files: files whose SHA-256 is that of manifest.json; 0 if there is none beside the package.
    """

    engine: Engine
    compute_units: ComputeUnits | None
    variant: str
    encodings: dict[str, int]
    n_read: int
    n_positions: int
    divergence: float
    source_divergence: float
    source_agreement: float
    seconds_per_token: float
    placement: dict[str, float]
    is_good: bool
    n_files: int = 0


def verify(
    package: Path, *, engine: Engine | None = None, compute_units: ComputeUnits = "ALL", timeout_s: float = _TIMEOUT_S
) -> VerifyReport:
    """Compare a package's files with its manifest, run its golden prompt and compare its logits.

    Args:
        package: an .mlpackage made by `edge convert`, or the folder around it.
        engine: "coreml" or "evaluator"; None is real prediction on a Mac and the evaluator elsewhere.
        compute_units: that Core ML may use; the evaluator has none.
        timeout_s: for real prediction, loading and compiling included.

    Raises:
        ModelNotFoundError: there is nothing at that path.
        ModelFileError: the package is damaged, a file of it has changed, or `edge convert` did not make it.
        BackendUnavailableError: real prediction was asked for and this is not a Mac, or coremltools is missing.
        BackendError: Core ML refused the program, or crashed on it.
        UsageError: an argument is unknown.
    """
    on_mac = platform.system() == "Darwin"
    engine = engine or ("coreml" if on_mac else "evaluator")
    if engine not in ("coreml", "evaluator") or compute_units not in COMPUTE_UNITS:
        raise UsageError(
            f"There is no engine {engine!r} with compute units {compute_units!r}.",
            f"Engines are coreml and evaluator, compute units {', '.join(COMPUTE_UNITS)}.",
        )
    if not package.exists():
        raise ModelNotFoundError(f"There is no package {package}.", "Check the path.")
    package = model_in(package)
    n_files = check_files(package)
    if engine == "coreml" and on_mac:
        find_files(package)  # so that a missing package does not look like a crash of Core ML
        report = _in_child(package, compute_units, timeout_s)
    else:
        report = _compare(load_functions(package, engine), None, {})
    return msgspec.structs.replace(report, n_files=n_files)


def _compare(functions: Functions, units: ComputeUnits | None, placement: dict[str, float]) -> VerifyReport:
    info = functions.info
    times, found = [], []
    began = time.perf_counter()
    for logits in golden_logits(PackageRunner(functions), info.golden):
        now = time.perf_counter()
        times.append(now - began)
        began = now
        found.append(logits)
    steps = times[1:] or times  # the first reads the prompt
    divergence = fmean([top.divergence(logits) for top, logits in zip(info.golden.package, found, strict=True)])
    agreement = [float(logits.argmax() == top.tokens[0]) for top, logits in zip(info.golden.source, found, strict=True)]
    return VerifyReport(
        engine=functions.engine,
        compute_units=units,
        variant=info.variant,
        encodings=info.encodings,
        n_read=len(info.golden.prompt) + len(found) - 1,
        n_positions=len(found),
        divergence=divergence,
        source_divergence=fmean([top.divergence(logits) for top, logits in zip(info.golden.source, found, strict=True)]),
        source_agreement=fmean(agreement),
        seconds_per_token=fmean(steps),
        placement=placement,
        is_good=divergence <= _SAME,
    )


def _in_child(package: Path, units: ComputeUnits, timeout_s: float) -> VerifyReport:
    ended = run_child(python_command(_CHILD, str(package), units), timeout_s=timeout_s)
    if ended.code is None:
        raise BackendError(
            f"Core ML did not finish {package.name} on {units} within {timeout_s:.0f} s.", "Try another --compute-units."
        )
    try:
        return msgspec.json.decode((ended.stdout.splitlines() or [b""])[-1], type=VerifyReport)
    except msgspec.MsgspecError as error:
        raise BackendError(
            f"Core ML failed on {package.name} ({units}): its process {ended.reason}.",
            "Try --compute-units CPU_AND_GPU or CPU_ONLY, or convert without a state (--explicit-kv).",
        ) from error


def predict_in_child(package: str, units: ComputeUnits) -> None:
    """Child: predict, and write the report as the last line of its output."""
    functions = load_functions(Path(package), "coreml", units)
    report = _compare(functions, units, _placement(functions.decode, units))
    sys.stdout.write("\n" + msgspec.json.encode(report).decode() + "\n")


def _placement(model: Any, units: Any) -> dict[str, float]:
    """Return the share of the decode function's operations that Core ML prefers on each unit. Reported, never relied on."""
    import coremltools as ct

    plan = ct.models.compute_plan.MLComputePlan.load_from_path(
        path=model.get_compiled_model_path(), compute_units=ct.ComputeUnit[units]
    )
    counts: dict[str, int] = {}
    for operation in plan.model_structure.program.functions["decode"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:
            name = type(usage.preferred_compute_device).__name__
            counts[name] = counts.get(name, 0) + 1
    total = sum(counts.values())
    return {name: count / total for name, count in sorted(counts.items())}
