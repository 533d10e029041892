"""`edge convert verify PATH`: compare a result with its manifest, and check that a Core ML package computes correctly here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_cli import output

if TYPE_CHECKING:
    from edge_convert.coreml.verify import VerifyReport

__all__ = ["verify_result"]


def verify_result(path: Path, compute_units: str | None, *, as_json: bool) -> int:
    """Compare a result's files with its manifest, compute it if it is a Core ML package, and return the exit code.

    Args:
        path: the result, or the folder that `edge convert` made for it.
        compute_units: that Core ML may use; None where the user named none.
        as_json: print the report as JSON.

    Raises:
        click.UsageError: compute units were named for another format.
        ModelNotFoundError: nothing is there.
        ModelFileError: a file is missing or changed, or there is no manifest.
        QualityGateError: a package's results differ from those at the export.
        EdgeError: it cannot be computed, see `edge_convert.coreml.verify.verify`.
    """
    from edge.errors import ModelFileError, ModelNotFoundError
    from edge.files import exists
    from edge_convert.evaluate.logits import model_in
    from edge_convert.manifest import MANIFEST, check_files

    if not exists(path):
        raise ModelNotFoundError(f"There is no file or folder {path}.", "Give the folder of a result of edge convert.")
    if model_in(path).suffix == ".mlpackage":
        return _verify_package(path, compute_units or "ALL", as_json=as_json)
    if compute_units:
        raise click.UsageError("--compute-units is only for Core ML packages.", click.get_current_context())
    began = time.monotonic()
    with output.Status() as status:
        status.watch(lambda: f"{time.monotonic() - began:3.0f} s  Reading {path.name}")
        n_files = check_files(path)
    if not n_files:
        raise ModelFileError(
            f"There is no {MANIFEST} beside {path}, so that nothing says what its files were.",
            "Give the folder that edge convert made, or copy its manifest there.",
        )
    if as_json:
        output.json_object({"n_files": n_files})
    else:
        output.table([("files", _files(n_files))])
        output.line("The files are those that the conversion made.")
    return 0


def _verify_package(path: Path, compute_units: str, *, as_json: bool) -> int:
    """Check a Core ML package, with Core ML on a Mac and with edge's evaluator elsewhere."""
    from msgspec.structs import asdict

    from edge.errors import QualityGateError
    from edge_convert.coreml.verify import verify

    began = time.monotonic()
    with output.Status() as status:
        status.watch(lambda: f"{time.monotonic() - began:3.0f} s  Computing {path.name}, which takes a minute or two")
        report = verify(path, compute_units=compute_units)  # type: ignore[arg-type]  # checked there
    if as_json:
        output.json_object(asdict(report))
    else:
        output.table(_lines(report))
        if report.is_good:
            output.line("The results are the same as at the export.")
    if not report.is_good:
        raise QualityGateError(
            f"The results of {path.name} differ from those at the export.",
            "Try other --compute-units or another variant; if none helps, copy or convert it again.",
        )
    return 0


def _files(n_files: int) -> str:
    if not n_files:
        return "not compared: there is no manifest.json beside the package"
    return f"{n_files} with the SHA-256 in manifest.json"


def _lines(report: VerifyReport) -> list[tuple[str, str]]:
    """Return the rows of a report."""
    where = f"Core ML on {report.compute_units}" if report.engine == "coreml" else "edge's evaluator, since this is not a Mac"
    weights = ", ".join(f"{count} {kind}" for kind, count in sorted(report.encodings.items(), key=lambda item: -item[1]))
    n = report.n_positions
    source = f"KL {report.source_divergence:.4f} nats, {round(n * report.source_agreement)} of {n} tokens the same"
    return [
        ("variant", f"{report.variant}: {weights}"),
        ("files", _files(report.n_files)),
        ("computed by", f"{where}; {report.seconds_per_token:.2f} s a token"),
        *(("planned on", f"{unit}: {share:.0%} of the operations") for unit, share in report.placement.items()),
        ("to the export", f"KL {report.divergence:.5f} nats at {n} places in a text of {report.n_read} tokens"),
        ("to the source", source),
    ]
