"""llama.cpp's own work in a conversion (quantising, calibrating, tokenising), each in a process of its own.

A child, because llama.cpp cannot be interrupted, may abort on bad input, and keeps memory; the parent stays in control.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from edge.errors import BackendError
from edge_convert.children import close_pipes, died

__all__ = ["run_task"]


def run_task(task: str, arguments: Mapping[str, Any], on_progress: Callable[[float], None] | None = None) -> Any:
    """Run one task of edge_convert.gguf.engine_child to its end.

    Args:
        task: its name there.
        arguments: its arguments; JSON.
        on_progress: called with the share that is done, 0 to 1. What it raises ends the child and goes through.

    Returns:
        What the task returned; JSON.

    Raises:
        BackendError: llama.cpp failed, refused or died.
    """
    with tempfile.TemporaryFile() as errors:  # no pipe: nobody reads it while the child works, and a full one would stop it
        child = subprocess.Popen(
            [sys.executable, "-m", "edge_convert.gguf.engine_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C goes to us, and we end the child
        )
        code, result = _converse(child, {"task": task, "arguments": dict(arguments)}, on_progress)
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")
    if "result" in result:
        return result["result"]
    if "error" in result:
        raise BackendError(result["error"], result["hint"])
    raise died("llama.cpp", code, said, "If you did not end it, report this.", f" while it was to {task}")


def _converse(
    child: subprocess.Popen[str], request: dict[str, Any], on_progress: Callable[[float], None] | None
) -> tuple[int, dict[str, Any]]:
    """Hand the child its task and listen to it. Returns its exit code and its last message."""
    assert child.stdin and child.stdout
    result: dict[str, Any] = {}
    try:
        try:
            # It stays open: the child ends when it closes, so a killed parent leaves no child behind.
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
        except BrokenPipeError:
            pass  # it died at once; why is read below
        for line in child.stdout:
            message = json.loads(line)
            if "progress" in message and on_progress:
                on_progress(message["progress"])
            else:
                result = message
        return child.wait(), result
    finally:
        child.kill()
        child.wait()
        close_pipes(child)
