"""The line at the bottom: what runs where, how full the context is, how fast it goes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rich.cells import cell_len
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from edge.names import TITLES
from edge.registry import ENGINES
from edge_chat import format as fmt

__all__ = ["StatusLine", "StatusValues", "fit_parts"]


OF_A_REPLY = (
    "used", "first_token_ms", "tokens_per_s", "n_reused", "n_prompt", "n_restored", "saved_ms", "is_answer_cached", "has_reply",
)  # fmt: skip
"""The fields of StatusValues that belong to a conversation and not to the model."""


@dataclass(frozen=True, slots=True)
class StatusValues:
    """What the line can show.

    Attributes:
        activity: what goes on now ("loading smollm2-135m, 40 %"); "" when nothing does.
        held_back: what is held back as the device is hot, low on battery or short of memory ("hot: 2 of 4 threads").
        backend, accelerator: keys of the plan; "" before a model is loaded.
        model: its name.
        used, total: tokens of the context window.
        first_token_ms, tokens_per_s: of the last reply; 0 where unknown.
        n_reused, n_prompt: tokens of the last prompt that came from the cache, and all of it.
        n_restored: of the reused ones, those from the disk; saved_ms: what not computing them saved.
        is_answer_cached: nothing was computed: the same request had been answered before.
        has_reply: the values above are of a reply, which may still be written.
    """

    activity: str = ""
    held_back: str = ""
    backend: str = ""
    accelerator: str = ""
    model: str = ""
    used: int = 0
    total: int = 0
    first_token_ms: float = 0.0
    tokens_per_s: float = 0.0
    n_reused: int = 0
    n_prompt: int = 0
    n_restored: int = 0
    saved_ms: float = 0.0
    is_answer_cached: bool = False
    has_reply: bool = False

    def parts(self) -> list[tuple[int, str]]:
        """(rank, text) from left to right; where there is no room, the highest rank goes first."""
        parts = []
        if self.activity:
            parts.append((0, self.activity))
        if self.held_back:
            parts.append((1, self.held_back))
        engine = " ".join(
            name
            for name in (
                TITLES.get(self.accelerator, self.accelerator),
                ENGINES[self.backend].title if self.backend in ENGINES else self.backend,
            )
            if name
        )
        if engine:
            parts.append((5, engine))
        if self.model:
            parts.append((2, self.model))
        if self.total:
            used = min(self.used, self.total)  # of an answer from before the window was made smaller
            share = round(100 * used / self.total)
            parts.append((3, f"context {fmt.count(used)}/{fmt.count(self.total)} ({share} %)"))
        if self.has_reply:
            if self.tokens_per_s:
                parts.append((4, fmt.rate(self.tokens_per_s)))
            if self.first_token_ms:
                parts.append((6, f"first token {fmt.seconds(self.first_token_ms)}"))
            if self.n_prompt:
                parts.extend(self._reuse())
        return parts

    def _reuse(self) -> list[tuple[int, str]]:
        if self.is_answer_cached:
            return [(7, "answered before")]
        details = [f"{fmt.count(self.n_restored)} from disk"] if self.n_restored else []
        if self.saved_ms >= 100:
            details.append(f"{fmt.seconds(self.saved_ms)} saved")
        parts = [(7, f"reused {fmt.count(self.n_reused)} of {fmt.count(self.n_prompt)}")]
        return [*parts, (8, ", ".join(details))] if details else parts

    def while_running(self, n_read: int, n_written: int, first_token_s: float, writing_s: float) -> StatusValues:
        """With what is known of a reply that is being written.

        Args:
            n_read: tokens of the prompt that are in the context.
            n_written: tokens of the reply so far.
            first_token_s: how long the first one took; 0 before it is there.
            writing_s: seconds since then.
        """
        return replace(
            self,
            used=n_read + n_written,
            first_token_ms=first_token_s * 1000,
            tokens_per_s=(n_written - 1) / writing_s if n_written > 1 and writing_s > 0 else 0.0,
            n_reused=0,
            n_prompt=0,  # what was reused is said when the reply is there
            has_reply=n_written > 0,
        )

    def with_record(self, record: dict[str, Any]) -> StatusValues:
        """With what a saved reply's record says; values that are missing or of another shape count as 0."""
        usage, timing = _numbers(record.get("usage")), _numbers(record.get("timing"))
        n_generated, decode_ms = usage.get("n_generated", 0), timing.get("decode_ms", 0)
        return replace(
            self,
            used=int(usage.get("n_prompt", 0) + n_generated),
            first_token_ms=timing.get("first_token_ms", 0),
            tokens_per_s=(n_generated - 1) * 1000 / decode_ms if n_generated > 1 and decode_ms > 0 else 0.0,
            n_reused=int(usage.get("n_reused", 0)),
            n_prompt=int(usage.get("n_prompt", 0)),
            n_restored=int(usage.get("n_restored", 0)),
            saved_ms=usage.get("saved_ms", 0),
            is_answer_cached=bool(usage.get("is_answer_cached", 0)),
            has_reply=bool(usage),
        )


def _numbers(table: object) -> dict[str, float]:
    if not isinstance(table, dict):
        return {}
    return {str(key): value for key, value in table.items() if isinstance(value, (int, float))}


def fit_parts(parts: list[tuple[int, str]], width: int, separator: str) -> str:
    """Join as many parts as fit, leaving out the least important; the last one standing is cut.

    Args:
        parts: (rank, text), 0 the most important.
        width: in terminal cells.
        separator: between two parts.
    """
    kept = list(parts)
    while len(kept) > 1 and cell_len(separator.join(text for _, text in kept)) > width:
        kept.remove(max(kept))
    return fmt.one_line(separator.join(text for _, text in kept), width)


class StatusLine(Static):
    """The line itself."""

    values: reactive[StatusValues] = reactive(StatusValues(), init=False)
    """What is shown."""

    def __init__(self) -> None:
        super().__init__(id="status", markup=False)

    def render(self) -> Content:
        """As many parts as the width allows."""
        separator = ", " if self.app.has_class("-plain") else " · "
        return Content(fmt.clean(fit_parts(self.values.parts(), self.content_size.width, separator)))

    def show_progress(self, n_read: int, n_written: int, first_token_s: float, writing_s: float) -> None:
        """Show how a reply comes along; see `StatusValues.while_running`."""
        self.values = self.values.while_running(n_read, n_written, first_token_s, writing_s)

    def change(self, **changes: Any) -> None:
        """Change some of the values."""
        self.values = replace(self.values, **changes)
