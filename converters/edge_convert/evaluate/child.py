"""The child process of one cell: python -m edge_convert.evaluate.child REQUEST RESULT, both JSON files.

It ends when its stdin does.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import msgspec

from edge_convert.children import end_with_parent
from edge_convert.evaluate.measure import (
    QualityResult,
    SpeedSample,
    load_reference,
    measure_quality,
    measure_reference,
    measure_speed,
)
from edge_convert.evaluate.passages import TextOptions, Window

__all__ = ["Problem", "QualityRequest", "ReferenceRequest", "Reply", "Request", "SpeedRequest", "main"]


class Request(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What every cell needs.

    Attributes:
        path: the model.
        n_threads: CPU threads.
        is_safe: see `open_logits`.
    """

    path: str
    n_threads: int
    is_safe: bool = False


class ReferenceRequest(Request, frozen=True, kw_only=True, tag=True):
    """Run `measure_reference`; `folder` takes the logits."""

    texts: TextOptions
    folder: str


class QualityRequest(Request, frozen=True, kw_only=True, tag=True):
    """Run `measure_quality` against the logits in `folder`; windows by their numbers there."""

    windows: dict[int, Window]
    folder: str


class SpeedRequest(Request, frozen=True, kw_only=True, tag=True):
    """Run `measure_speed`."""

    n_prefill: int
    n_decode: int


class Problem(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An error of the child: the name of its class in edge.errors, and what it says."""

    kind: str
    message: str
    hint: str = ""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the RESULT file: one of the three."""

    quality: QualityResult | None = None
    speed: SpeedSample | None = None
    problem: Problem | None = None


def main(request_file: str, result_file: str) -> None:
    """Do what the request says, and write a Reply."""
    from edge.errors import EdgeError

    end_with_parent(signal.SIGKILL)
    request = msgspec.json.decode(Path(request_file).read_bytes(), type=ReferenceRequest | QualityRequest | SpeedRequest)
    try:
        reply = _run(request)
    except EdgeError as error:
        reply = Reply(problem=Problem(kind=type(error).__name__, message=error.message, hint=error.hint))
    except MemoryError:
        reply = Reply(problem=Problem(kind="StorageError", message="There is not enough memory.", hint="Use smaller windows."))
    except Exception as error:  # noqa: BLE001 (whatever an engine raises has to reach the parent as one line)
        reply = Reply(problem=Problem(kind="BackendError", message=f"{type(error).__name__}: {error}"))
    Path(result_file).write_bytes(msgspec.json.encode(reply))


def _run(request: ReferenceRequest | QualityRequest | SpeedRequest) -> Reply:
    path = Path(request.path)
    if isinstance(request, ReferenceRequest):
        folder = Path(request.folder)
        found = measure_reference(path, request.texts, folder, n_threads=request.n_threads, is_safe=request.is_safe)
        return Reply(quality=found)
    if isinstance(request, QualityRequest):
        windows, reference = list(request.windows.values()), load_reference(Path(request.folder), request.windows)
        found = measure_quality(path, windows, reference, n_threads=request.n_threads, is_safe=request.is_safe)
        return Reply(quality=found)
    sample = measure_speed(path, request.n_prefill, request.n_decode, n_threads=request.n_threads, is_safe=request.is_safe)
    return Reply(speed=sample)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
