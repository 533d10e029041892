"""Heavy steps of a conversion in processes of their own: their memory is gone when the next begins, and a crash ends one step.

The child gets a JSON line that names the step, and answers with JSON lines of progress. It makes the same plan from the same
source and request, and takes its step from there: nothing is pickled. When its stdin closes, because the parent was killed, it
stops as it does on Ctrl-C and saves what its step can save.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import msgspec

from edge.child import Child, claim_stdout, end_with_parent, python_command, rebuild_error
from edge.errors import BackendError, EdgeError
from edge_convert.facts import Request
from edge_convert.full_disk import name_full_disk
from edge_convert.inputs import Input
from edge_convert.pipeline import FolderOf, Plan, Step, StepProgress
from edge_convert.plan import make_plan

__all__ = ["isolate"]

_LIBRARIES = ("transformers", "huggingface_hub", "tokenizers", "safetensors", "gguf", "peft")
_MOST_TEXT = 500
_SAVE_S, _STOP_S = 60.0, 5.0
"""Time to end for a step that is stopped: one that saves its state (gigabytes, on a slow disk), and any other."""


class _Task(msgspec.Struct, frozen=True, kw_only=True):
    """The request to a child: the step of that name, out of the plan that source, out and request make, into a folder.

    Temporary files of libraries go to `scratch`: coremltools makes two packages with all weights, and removes them at an
    orderly end only.
    """

    source: Input
    request: Request
    out: Path
    step: str
    folder: Path
    scratch: Path


def _encode(task: _Task) -> bytes:
    """Return a task as a line of JSON. Python's own JSON escapes what is not UTF-8 in a path."""
    return json.dumps(msgspec.to_builtins(task, enc_hook=str)).encode()


def _decode(line: bytes) -> _Task:
    return msgspec.convert(json.loads(line), _Task, dec_hook=lambda kind, value: kind(value))


def isolate(plan: Plan, source: Input, request: Request) -> Plan:
    """Return a plan, made from these, with its heavy steps in processes of their own."""
    steps = tuple(_isolated(step, plan, source, request) if step.is_heavy else step for step in plan.steps)
    return msgspec.structs.replace(plan, steps=steps)


def _isolated(step: Step, plan: Plan, source: Input, request: Request) -> Step:
    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        scratch = plan.work / f"{step.name}.scratch.tmp"  # what a killed run leaves goes with the next one's
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        task = _Task(source=source, request=request, out=plan.out, step=step.name, folder=folder, scratch=scratch)
        try:
            with name_full_disk(plan.work):
                _run_child(task, step.title, on_progress, _SAVE_S if step.resumes else _STOP_S)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    return msgspec.structs.replace(step, work=work)


def _run_child(task: _Task, title: str, on_progress: StepProgress, patience_s: float) -> None:
    result: dict[str, Any] = {}
    with Child(python_command("edge_convert.step_process:main")) as child:
        try:
            child.send(_encode(task))
            for line in child.lines():
                message = json.loads(line)
                if "share" in message:
                    on_progress(message["detail"], message["share"])
                else:
                    result = message
            ended = child.wait()
        finally:
            child.stop(patience_s)
    if "error" in result:
        raise rebuild_error(result["error"], result["message"], result["hint"])
    if "errno" in result:
        raise OSError(result["errno"], result["message"], result["file"])
    if "crash" in result:
        raise RuntimeError(f'The step "{title}" raised an error that it does not know.\n\n{result["crash"]}')
    if "done" not in result:
        raise BackendError(
            f'The process of the step "{title}" {ended.reason}.',
            "Run the same command again: it goes on with this step. If it fails again, report this.",
        )


def _library_of(error: Exception) -> str:
    """Return the library that raised an error about its input, "" for edge's own code."""
    if type(error) is Exception:  # the tokenizers library, written in Rust, has no type of its own
        return "tokenizers"
    frames = traceback.extract_tb(error.__traceback__)
    parts = Path(frames[-1].filename).parts if frames else ()
    return next((name for name in _LIBRARIES if name in parts), "")


def main() -> None:
    """Do the step on the first line of stdin."""
    write = claim_stdout()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the parent without it

    def send(**message: Any) -> None:
        write(json.dumps(message).encode())

    code = 1
    try:
        task = _decode(sys.stdin.buffer.readline())
        end_with_parent(signal.SIGINT)
        tempfile.tempdir = os.environ["TMPDIR"] = str(task.scratch)
        plan = make_plan(task.source, task.out, task.request)
        step = next(step for step in plan.steps if step.name == task.step)
        step.work(task.folder, lambda name: plan.work / name, lambda detail, share: send(detail=detail, share=share))
        send(done=True)
        code = 0
    except KeyboardInterrupt:
        code = 130
    except EdgeError as error:
        send(error=type(error).__name__, message=error.message, hint=error.hint)
    except OSError as error:
        # shutil.Error lists what it could not copy, and has no number.
        is_full = error.errno is None and os.strerror(errno.ENOSPC) in str(error)
        code_of = errno.ENOSPC if is_full else error.errno or errno.EIO
        send(errno=code_of, message=error.strerror or str(error), file=str(error.filename or ""))
    except Exception as error:  # noqa: BLE001 (what a library cannot read, or a bug: the command reports it as such)
        library = _library_of(error)
        if library:
            reason = f"{type(error).__name__}: {str(error).strip()[:_MOST_TEXT]}"
            what = f"{library} cannot use this model: {reason}."
            send(
                error="ModelFileError",
                message=what,
                hint="Download the model again; if you changed a file of it, correct that.",
            )
        else:
            send(crash=traceback.format_exc())
    # Libraries' threads need no orderly end, and the memory goes with the process.
    sys.stderr.flush()
    os._exit(code)
