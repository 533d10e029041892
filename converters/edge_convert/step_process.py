"""Steps of a conversion in processes of their own, so that what one held is gone when the next begins, and so that a library
that dies takes its step with it and nothing else.

    python -m edge_convert.step_process     the child: a JSON line on stdin says which step; JSON lines on stdout tell how far

The child makes the same plan from the same source and request, and takes its step from there: nothing is pickled. Its stdin
stays open; when that closes, because the parent was killed, it stops as it does on Ctrl-C and saves what its step can save.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import EdgeError
from edge_convert.children import close_pipes, died, end_with_parent, environment, raised
from edge_convert.facts import Request
from edge_convert.inputs import Input
from edge_convert.pipeline import FolderOf, Plan, Step, StepProgress
from edge_convert.plan import make_plan

__all__ = ["isolated"]

_SAVE_S, _STOP_S = 60.0, 5.0
"""How long a step may take to end when it is stopped: one that saves its state (gigabytes, on a slow disk), and any other."""
_RESUMES = "Run the same command again: it goes on with this step. If it fails again, report this."


class _Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is to do.

    Attributes:
        source, request: make the plan.
        out: folder of the plan.
        step: name of the step.
        folder: to write into.
    """

    source: Input
    request: Request
    out: Path
    step: str
    folder: Path


def isolated(plan: Plan, source: Input, request: Request) -> Plan:
    """The same plan with its heavy steps in processes of their own.

    Args:
        plan: from `make_plan(source, out, request)`.
        source: of the plan.
        request: of the plan.
    """
    steps = tuple(_isolated(step, plan, source, request) if step.is_heavy else step for step in plan.steps)
    return msgspec.structs.replace(plan, steps=steps)


def _isolated(step: Step, plan: Plan, source: Input, request: Request) -> Step:
    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        task = _Task(source=source, request=request, out=plan.out, step=step.name, folder=folder)
        _run_child(task, step.title, on_progress, _SAVE_S if step.resumes else _STOP_S)

    return msgspec.structs.replace(step, work=work)


# -- the parent's side


def _run_child(task: _Task, title: str, on_progress: StepProgress, patience_s: float) -> None:
    with tempfile.TemporaryFile() as said:  # no pipe: nobody reads it while the child works, and a full one would stop it
        child = subprocess.Popen(
            [sys.executable, "-m", "edge_convert.step_process"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,  # Ctrl-C goes to us, and we stop the child
        )
        try:
            result = _converse(child, msgspec.json.encode(task, enc_hook=str), on_progress)
            code = child.wait()
        finally:
            _stop(child, patience_s)
        said.seek(0)
        tail = said.read().decode("utf-8", "replace")
    if "error" in result:
        raise raised(result["error"], result["message"], result["hint"])
    if "errno" in result:
        raise OSError(result["errno"], result["message"], result["file"])
    if "done" not in result:
        raise died(f'The process of the step "{title}"', code, tail, _RESUMES)


def _converse(child: subprocess.Popen[bytes], task: bytes, on_progress: StepProgress) -> dict[str, Any]:
    """Hand the child its task and listen to it. Returns its last message."""
    assert child.stdin and child.stdout
    result: dict[str, Any] = {}
    try:
        child.stdin.write(task + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass  # it died at once; its exit code says why
    for line in child.stdout:
        message = json.loads(line)
        if "share" in message:
            on_progress(message["detail"], message["share"])
        else:
            result = message
    return result


def _stop(child: subprocess.Popen[bytes], patience_s: float) -> None:
    """End a child that has not ended: asked first, so that it can save its state, then with everything below it."""
    assert child.stdin and child.stdout
    try:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(patience_s)
            except subprocess.TimeoutExpired:
                pass
    finally:  # also where the user has no patience for that
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        close_pipes(child)


# -- the child's side


def main() -> None:
    """Do the step that stands on the first line of stdin."""
    # Whatever libraries print goes to stderr; only this function writes to the parent.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the parent without it

    def send(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        task = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Task, dec_hook=lambda kind, value: kind(value))
        end_with_parent(signal.SIGINT)
        plan = make_plan(task.source, task.out, task.request)
        step = next(step for step in plan.steps if step.name == task.step)
        step.work(task.folder, lambda name: plan.work / name, lambda detail, share: send(detail=detail, share=share))
    except KeyboardInterrupt:
        code = 130
    except EdgeError as error:
        send(error=type(error).__name__, message=error.message, hint=error.hint)
        code = 1
    except OSError as error:
        send(errno=error.errno or errno.EIO, message=error.strerror or str(error), file=str(error.filename or ""))
        code = 1
    else:
        send(done=True)
        code = 0
    # Libraries' threads need no orderly end, and the memory goes with the process.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
