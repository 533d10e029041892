"""Tiny Core ML packages for the contract, and the backend on a stand-in of coremltools' prediction interface.

The packages are real ones, exported from a tiny checkpoint; the stand-in computes them with the converters' evaluator.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.formats.artifact import open_artifact

if TYPE_CHECKING:
    from edge.backends.coreml.backend import CoreMLBackend

GOOD: dict[str, Any] = {"is_good": True}
"""A verdict for tests that are not about the trial: it would start a process for each backend."""


def write_package(folder: Path, *, context: int, chunk: int, stateful: bool = True, kind: str = "llama") -> Path:
    """Export a tiny checkpoint without a chat template. Gives the path of the .mlpackage."""
    from edge_convert.coreml.export import CoreMLOptions, export_coreml
    from tests.checkpoints import make_checkpoint

    checkpoint = make_checkpoint(folder / "checkpoint", kind)
    (checkpoint / "chat_template.jinja").unlink()
    config = checkpoint / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": None}))
    options = CoreMLOptions(variant="fp16", context=context, chunk=chunk, stateful=stateful)
    package, *_ = export_coreml(checkpoint, folder / "package", options, lambda what, share: None)
    return package


def coreml_plan(make_plan: Any, package: Path, **changes: Any) -> Any:
    """A small plan for a package."""
    return make_plan(package, **{"backend": "coreml", "accelerator": "ane", "artifact": open_artifact(package), **changes})


def open_coreml(plan: Any, cache_dir: Path, **options: Any) -> CoreMLBackend:
    """The backend with the stand-in in coremltools' place."""
    from edge.backends.coreml.backend import CoreMLBackend
    from edge.backends.coreml.trial import Verdict
    from tests.standins.coremltools_predict import make_coremltools

    given = {"coremltools": make_coremltools(), "verdict": Verdict(**GOOD), "cache_dir": cache_dir, **options}
    return CoreMLBackend(plan, **given)
