"""Runs the tools that a model calls: asks for approval, bounds time and size, and feeds what goes wrong back to the model."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from edge.errors import EdgeError
from edge.events import ToolResult
from edge.messages import Message, Tool, ToolCall

__all__ = ["Approve", "ToolLimits", "ToolRunner"]

Approve: TypeAlias = Callable[[ToolCall], object] | Literal["always"]
"""Who approves a call: a function that returns True, or False or a text with the reason why not; it may be async. "always"
approves every call. With None nobody can be asked, so only tools that need no approval run."""

_LOOK_S = 0.25
_REFUSED = "The user did not allow this call."
_NOBODY = "This call was not run, because nobody can be asked to allow it."


@dataclass(frozen=True, slots=True)
class ToolLimits:
    """Bounds of tool use.

    Attributes:
        max_rounds: how often a reply may call tools before it is stopped.
        timeout_s: longest time that a call may take, in seconds.
        max_chars: of a result that the model reads; the rest is left out.
    """

    max_rounds: int = 8
    timeout_s: float = 60.0
    max_chars: int = 20_000


@dataclass(frozen=True, slots=True)
class _Outcome:
    text: str
    is_error: bool = False


class ToolRunner:
    """Runs the calls of one reply.

    Args:
        tools: that the model was told of.
        approve: approves calls; see `Approve`.
        limits: of time and size.
        is_cancelled: tells if the reply was stopped or its time is over, which ends waiting for a tool.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        approve: Approve | None,
        *,
        limits: ToolLimits = ToolLimits(),
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.limits = limits
        self._tools = {tool.name: tool for tool in tools}
        self._approve = approve
        self._is_cancelled = is_cancelled

    def can_run(self, calls: Sequence[ToolCall]) -> bool:
        """Tell if there are calls, and none is of a tool that the caller runs itself."""
        functions = [tool.function for tool in self._tools.values()]
        return bool(calls) and any(functions) and all(self._is_ours(call) for call in calls)

    def _is_ours(self, call: ToolCall) -> bool:
        return call.name not in self._tools or self._tools[call.name].function is not None

    def run(self, calls: Sequence[ToolCall], on_result: Callable[[ToolResult], None]) -> list[Message]:
        """Ask for approval of each call, run those that have it side by side, and return the results in order.

        Args:
            calls: for which `can_run` is true.
            on_result: called with each result, as it comes.
        """
        outcomes: dict[int, _Outcome] = {}
        todo: list[int] = []
        for number, call in enumerate(calls):
            refusal = _Outcome(_REFUSED, is_error=True) if self._is_cancelled() else self._refusal(call)
            if refusal is None:
                todo.append(number)
            else:
                outcomes[number] = refusal
                on_result(ToolResult(call, refusal.text, refusal.is_error))
        done: queue.SimpleQueue[tuple[int, _Outcome]] = queue.SimpleQueue()
        for number in todo:
            work = lambda number=number: done.put((number, self._call(calls[number])))  # noqa: E731
            threading.Thread(target=work, name="edge-tool", daemon=True).start()
        until = time.monotonic() + self.limits.timeout_s
        while len(outcomes) < len(calls) and time.monotonic() < until and not self._is_cancelled():
            try:
                number, outcome = done.get(timeout=min(_LOOK_S, max(0.0, until - time.monotonic())))
            except queue.Empty:
                continue
            outcomes[number] = outcome
            on_result(ToolResult(calls[number], outcome.text, outcome.is_error))
        late = "It was stopped." if self._is_cancelled() else f"It took longer than {self.limits.timeout_s:g} seconds."
        for number in todo:
            if number not in outcomes:
                outcomes[number] = _Outcome(f"Error: {late}", is_error=True)
                on_result(ToolResult(calls[number], outcomes[number].text, is_error=True))
        return [
            Message("tool", outcomes[number].text, call.name, tool_call_id=call.id) for number, call in enumerate(calls)
        ]  # fmt: skip

    def _refusal(self, call: ToolCall) -> _Outcome | None:
        """Return why a call is not run; None if it is."""
        tool = self._tools.get(call.name)
        if tool is None:
            known = ", ".join(self._tools)
            return _Outcome(f"Error: there is no tool {call.name[:80]!r}. There are: {known}.", is_error=True)
        if not tool.needs_approval or self._approve == "always":
            return None
        if self._approve is None:
            return _Outcome(_NOBODY, is_error=True)
        try:
            answer = _wait_for(self._approve(call))
        except Exception as error:  # noqa: BLE001 (a hook that fails has not approved)
            return _Outcome(f"{_NOBODY} ({error})", is_error=True)
        if answer is True:
            return None
        return _Outcome(answer if isinstance(answer, str) and answer else _REFUSED, is_error=True)

    def _call(self, call: ToolCall) -> _Outcome:
        function = self._tools[call.name].function
        assert function is not None
        try:
            return _Outcome(self._bounded(_to_text(_wait_for(function(**call.arguments)))))
        except EdgeError as error:
            return _Outcome(self._bounded(f"Error: {error}"), is_error=True)
        except Exception as error:  # noqa: BLE001 (the model hears of it and may try again)
            name = "" if isinstance(error, msgspec.ValidationError) else f"{type(error).__name__}: "
            return _Outcome(self._bounded(f"Error: {name}{error}"), is_error=True)

    def _bounded(self, text: str) -> str:
        most = self.limits.max_chars
        return text if len(text) <= most else f"{text[:most]}\n[{len(text) - most:,} characters were left out]"


def _wait_for(value: object) -> object:
    if inspect.isawaitable(value):

        async def wait() -> object:
            return await value

        return asyncio.run(wait())
    return value


def _to_text(value: object) -> str:
    """Return a result as text: a str as it is, None as "Done.", anything else as JSON where it has a form in it."""
    if isinstance(value, str):
        return value
    if value is None:
        return "Done."
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError):
        return str(value)
