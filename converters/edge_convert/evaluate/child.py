"""The child process of one job: a request on a line of stdin, a reply on a line of stdout. It ends when its stdin closes."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import msgspec

from edge.child import claim_stdout, end_with_parent
from edge.errors import EdgeError
from edge_convert.evaluate.card import Speed
from edge_convert.evaluate.measure import QualityResult, load_reference, measure_quality, measure_reference, measure_speed
from edge_convert.evaluate.passages import TextOptions, Window

__all__ = ["Problem", "QualityRequest", "ReferenceRequest", "Reply", "Request", "SpeedRequest", "main"]


class Request(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Model and threads of a job.

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
    """An error of the child: the name of its class in edge.errors, message and hint."""

    kind: str
    message: str
    hint: str = ""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a job: one of the three."""

    quality: QualityResult | None = None
    speed: Speed | None = None
    problem: Problem | None = None


def main() -> None:
    """Do what the request on the first line of stdin says, and write a Reply."""
    send = claim_stdout()
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=ReferenceRequest | QualityRequest | SpeedRequest)
    end_with_parent(signal.SIGKILL)
    try:
        reply = _run(request)
    except EdgeError as error:
        reply = Reply(problem=Problem(kind=type(error).__name__, message=error.message, hint=error.hint))
    except MemoryError:
        reply = Reply(problem=Problem(kind="StorageError", message="There is not enough memory.", hint="Use smaller windows."))
    except Exception as error:  # noqa: BLE001 (whatever an engine raises has to reach the parent as one line)
        reply = Reply(problem=Problem(kind="BackendError", message=f"{type(error).__name__}: {error}"))
    send(msgspec.json.encode(reply))


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
