"""Runs llama.cpp's part of a conversion (quantising, calibrating, tokenising) in child processes.

llama.cpp cannot be interrupted, may abort on bad input, and keeps memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from edge.child import Child, python_command, rebuild_error
from edge.errors import BackendError

__all__ = ["run_task"]


def run_task(task: str, arguments: Mapping[str, Any], on_progress: Callable[[float], None] | None = None) -> Any:
    """Run one task of edge_convert.gguf.engine_child to its end.

    Args:
        task: its name there.
        arguments: its arguments; JSON.
        on_progress: called with the share that is done, 0 to 1. What it raises ends the child.

    Returns:
        The task's result; JSON.

    Raises:
        BackendError: llama.cpp failed or died.
        ModelFileError: it cannot read the model.
    """
    result: dict[str, Any] = {}
    with Child(python_command("edge_convert.gguf.engine_child:main")) as child:
        child.send(json.dumps({"task": task, "arguments": dict(arguments)}).encode())
        for line in child.lines():
            result = json.loads(line)
            if "progress" in result and on_progress:
                on_progress(result["progress"])
        ended = child.wait()
    if "result" in result:
        return result["result"]
    if "error" in result:
        raise rebuild_error(result["kind"], result["error"], result["hint"])
    raise BackendError(
        f"llama.cpp {ended.reason} while it was to {task}.",
        "If memory is short, close other programs and run the same command again; else report this.",
    )
