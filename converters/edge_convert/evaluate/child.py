"""The child process of one job: the job on a line of stdin, a reply on a line of stdout. It ends when its stdin closes."""

from __future__ import annotations

import signal
import sys

import msgspec

from edge.child import claim_stdout, end_with_parent
from edge.errors import EdgeError
from edge_convert.evaluate.measure import Problem, QualityJob, ReferenceJob, Reply, SpeedJob

__all__ = ["main"]


def main() -> None:
    """Run the job on the first line of stdin, and write a Reply."""
    send = claim_stdout()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=ReferenceJob | QualityJob | SpeedJob)
    end_with_parent(signal.SIGKILL)
    try:
        reply = job.run()
    except EdgeError as error:
        reply = Reply(problem=Problem.of(error))
    except MemoryError:
        reply = Reply(problem=Problem(kind="StorageError", message="There is not enough memory.", hint="Use smaller windows."))
    except Exception as error:  # noqa: BLE001 (whatever an engine raises has to reach the parent as one line)
        reply = Reply(problem=Problem(kind="BackendError", message=f"{type(error).__name__}: {error}"))
    send(msgspec.json.encode(reply))
