"""A record of what a turn spends its time on, taken where the parts of edge call each other.

`Trace.watch` puts a `Watched` in front of a part: a backend, a tokenizer, a template, a store. Calls that belong to a stage are
timed; everything else passes through. Without a trace nothing is put in front of anything, so it costs nothing when it is off.
The spans can be saved in the Trace Event format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Source: Trace Event Format (Google, 2016), complete events ("X") and thread names ("M").
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

__all__ = ["ENGINE_THREAD", "STAGES", "Span", "Stage", "Trace"]

Part = TypeVar("Part")
Kind = Literal["backend", "draft", "template", "blocks", "store"]
Stage = Literal[
    "template", "tokenise", "queue", "restore", "prefill", "draft", "decode", "sampling", "detokenise", "save", "other"
]  # fmt: skip

STAGES: dict[Stage, str] = {
    "template": "rendering the chat template",
    "tokenise": "turning text into tokens",
    "queue": "waiting for the engine",
    "restore": "restoring keys and values from the disk",
    "prefill": "computing the prompt",
    "draft": "guessing tokens with the draft model",
    "decode": "computing the tokens of the reply",
    "sampling": "choosing tokens",
    "detokenise": "turning tokens into text",
    "save": "saving messages, and keys and values",
    "other": "everything else",
}
"""Stages of a turn in the order in which they first occur, with what each of them is."""

ENGINE_THREAD = "edge-engine"
"""Name of the thread that computes."""

_CALLS: dict[str, dict[str, Stage]] = {
    "backend": {"prefill": "prefill", "decode": "decode", "import_kv": "restore", "export_kv": "save"},
    "draft": {"prefill": "draft", "decode": "draft", "logits": "draft"},
    "sampler": {"sample": "sampling"},
    "tokenizer": {"tokenize": "tokenise", "token_bytes": "detokenise"},
    "template": {"render": "template", "encode": "tokenise"},
    "blocks": {"match": "restore", "read": "restore", "put": "save", "touch": "save"},
    "store": {"create": "save", "append": "save", "update": "save", "set_head": "save"},
}
_BELOW = {"tokenizer": "tokenizer", "open_sampler": "sampler"}
"""Attributes and results of calls that are parts themselves."""


@dataclass(frozen=True, slots=True)
class Span:
    """One call.

    Attributes:
        stage: what it belongs to.
        start, end: seconds of `time.perf_counter`.
        thread: name of the thread that called.
        details: what it worked on: `n_tokens` of a prefill; `n_tokens` and `n_sequences` of a decode.
    """

    stage: Stage
    start: float
    end: float
    thread: str
    details: Mapping[str, int] = field(default_factory=dict)


class Trace:
    """Collects spans, from any thread.

    Args:
        clock: seconds.

    Attributes:
        spans: in the order in which they ended.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.spans: list[Span] = []

    def watch(self, part: Part, kind: Kind) -> Part:
        """Return what stands for a part and times its calls."""
        return cast(Part, _Watched(part, kind, self))

    def timed(self, stage: Stage, call: Callable[..., Any], details: Callable[..., Mapping[str, int]]) -> Callable[..., Any]:
        """Return a function that calls another one and records a span."""

        def run(*args: Any, **options: Any) -> Any:
            start = self.clock()
            try:
                return call(*args, **options)
            finally:
                span = Span(stage, start, self.clock(), threading.current_thread().name, details(*args, **options))
                self.spans.append(span)

        return run

    def to_json(self, spans: Sequence[Span], about: Mapping[str, object]) -> str:
        """Return spans in the Trace Event format, times counted from the first of them.

        Args:
            spans: at least one.
            about: facts for the file's `otherData`.
        """
        start = min(span.start for span in spans)
        threads = list(dict.fromkeys(span.thread for span in spans))
        pid = os.getpid()
        names = [
            {"name": "thread_name", "ph": "M", "pid": pid, "tid": number, "args": {"name": name}}
            for number, name in enumerate(threads, 1)
        ]
        events = [
            {
                "name": span.stage,
                "cat": "edge",
                "ph": "X",
                "ts": round((span.start - start) * 1e6, 3),
                "dur": round((span.end - span.start) * 1e6, 3),
                "pid": pid,
                "tid": threads.index(span.thread) + 1,
                "args": dict(span.details),
            }
            for span in sorted(spans, key=lambda one: one.start)
        ]
        return json.dumps({"traceEvents": [*names, *events], "displayTimeUnit": "ms", "otherData": dict(about)}) + "\n"


class _Watched:
    """Stands for a part: its calls of a stage are timed, everything else is the part's own."""

    def __init__(self, part: object, kind: str, trace: Trace) -> None:
        self._part, self._kind, self._trace = part, kind, trace
        self._calls: dict[str, Callable[..., Any]] = {}

    def __getattr__(self, name: str) -> Any:
        if (known := self._calls.get(name)) is not None:
            return known
        value, stage = getattr(self._part, name), _CALLS[self._kind].get(name)
        if stage is not None:
            return self._calls.setdefault(name, self._trace.timed(stage, value, _DETAILS.get((self._kind, name), _no_details)))
        below = _BELOW.get(name)
        if below is None:
            return value
        if callable(value):
            return lambda *args, **options: _Watched(value(*args, **options), below, self._trace)
        return self._calls.setdefault(name, cast(Any, _Watched(value, below, self._trace)))

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._part, name, value)


def _no_details(*_: object, **__: object) -> Mapping[str, int]:
    return {}


def _of_prefill(_: int, tokens: Sequence[int], **__: object) -> Mapping[str, int]:
    return {"n_tokens": len(tokens)}


def _of_decode(steps: Sequence[object], drafts: Mapping[int, Sequence[int]] | None = None) -> Mapping[str, int]:
    return {"n_tokens": len(steps) + sum(map(len, (drafts or {}).values())), "n_sequences": len(steps)}


_DETAILS: dict[tuple[str, str], Callable[..., Mapping[str, int]]] = {
    ("backend", "prefill"): _of_prefill,
    ("backend", "decode"): _of_decode,
}
