"""The status line: the model and where it runs, the context window, speed and cache reuse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rich.cells import cell_len
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from edge.names import TITLES
from edge.registry import ENGINES
from edge.units import duration_text
from edge_chat import format as fmt

__all__ = ["StatusLine", "StatusValues", "fit_parts"]


OF_A_REPLY = (
    "used", "first_token_ms", "tokens_per_s", "n_reused", "n_prompt", "n_restored", "n_foreign", "saved_ms", "is_answer_cached",
    "n_drafted", "n_accepted", "answered_by", "has_reply",
)  # fmt: skip
"""The fields of StatusValues that belong to a conversation, not to the model."""

_MEASURED_S = 0.5


@dataclass(frozen=True, slots=True)
class StatusValues:
    """All values that the line can show.

    Attributes:
        activity: what the model host does ("loading smollm2-135m, 40 %"); "" if nothing.
        throttled: the limits on a device that is hot, low on battery or short of memory ("hot: 2 of 4 threads"); "" for none.
        has_disk: the on-disk KV cache has not failed.
        backend, accelerator: keys of the plan; "" before a model is loaded.
        model: its name.
        used, total: tokens of the context window.
        draft: tokens of the message being written; is_draft_too_long: no window is large enough for it.
        first_token_ms, tokens_per_s: of the last reply; 0 if unknown.
        n_reused, n_prompt: tokens of the last prompt from the KV cache, and all its tokens.
        n_restored: reused tokens from the disk; saved_ms: the computing time that saved.
        n_foreign: restored tokens that another engine computed.
        is_answer_cached: the answer came from the answer cache, without computing.
        n_drafted, n_accepted: guessed tokens of the last reply, and those that were right.
        answered_by: who gave the last reply, if the question was sent on to the next tier; "" otherwise.
        has_reply: the values above are of a reply, which may still be running.
    """

    activity: str = ""
    throttled: str = ""
    has_disk: bool = True
    backend: str = ""
    accelerator: str = ""
    model: str = ""
    used: int = 0
    total: int = 0
    draft: int = 0
    is_draft_too_long: bool = False
    first_token_ms: float = 0.0
    tokens_per_s: float = 0.0
    n_reused: int = 0
    n_prompt: int = 0
    n_restored: int = 0
    n_foreign: int = 0
    saved_ms: float = 0.0
    is_answer_cached: bool = False
    n_drafted: int = 0
    n_accepted: int = 0
    answered_by: str = ""
    has_reply: bool = False

    def parts(self) -> list[tuple[int, str]]:
        """Return (rank, text) from left to right; the highest rank is dropped first where there is no room."""
        backend = ENGINES[self.backend].title if self.backend in ENGINES else self.backend
        engine = f"{TITLES.get(self.accelerator, self.accelerator)} {backend}".strip()
        parts = [
            (0, self.activity),
            (1, self.throttled),
            (2, "" if self.has_disk else "disk cache off"),
            (6, engine),
            (3, self.model),
        ]
        if self.is_draft_too_long:
            parts.append((1, f"this message: ~{self.draft:,} tokens, too long"))
        if self.total:
            used = min(self.used, self.total)  # the answer may be older than a smaller window
            draft = 0 if self.is_draft_too_long else self.draft
            share = round(100 * min(used + draft, self.total) / self.total)
            parts.append((4, f"context {used:,}{f' + {draft:,}' if draft else ''}/{self.total:,} ({share} %)"))
        if self.has_reply:
            parts.append((2, f"answered by {fmt.one_line(self.answered_by, 60)}" if self.answered_by else ""))
            parts.append((5, fmt.rate(self.tokens_per_s) if self.tokens_per_s else ""))
            parts.append((7, f"first token {duration_text(self.first_token_ms / 1000)}" if self.first_token_ms else ""))
            if self.n_prompt:
                parts.extend(self._reuse())
            parts.append((10, f"guessed {self.n_accepted:,} of {self.n_drafted:,}" if self.n_drafted else ""))
        return [part for part in parts if part[1]]

    def _reuse(self) -> list[tuple[int, str]]:
        if self.is_answer_cached:
            return [(8, "cached answer")]
        origin = " (another engine's)" if self.n_foreign else ""
        details = [f"{self.n_restored:,} from disk{origin}"] if self.n_restored else []
        if self.saved_ms >= 100:
            details.append(f"{duration_text(self.saved_ms / 1000)} saved")
        return [(8, f"reused {self.n_reused:,} of {self.n_prompt:,}"), (9, ", ".join(details))]

    def while_running(self, n_processed: int, n_generated: int, first_token_s: float, decode_s: float) -> StatusValues:
        """Return these values with the figures of a running reply.

        Args:
            n_processed: prompt tokens in the context.
            n_generated: tokens of the reply so far.
            first_token_s: time to the first token; 0 before it.
            decode_s: seconds since then. The speed is shown from half a second on: the first pieces may arrive at once.
        """
        return replace(
            self,
            used=n_processed + n_generated,
            first_token_ms=first_token_s * 1000,
            tokens_per_s=(n_generated - 1) / decode_s if decode_s >= _MEASURED_S else 0.0,
            n_reused=0,
            n_prompt=0,  # reuse is shown once the reply is complete
            n_drafted=0,
            answered_by="",
            has_reply=n_generated > 0,
        )

    def with_record(self, record: dict[str, Any]) -> StatusValues:
        """Return these values with the figures of a saved reply; missing or malformed figures count as 0."""
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
            n_foreign=int(usage.get("n_foreign", 0)),
            saved_ms=usage.get("saved_ms", 0),
            is_answer_cached=bool(usage.get("is_answer_cached", 0)),
            n_drafted=int(usage.get("n_drafted", 0)),
            n_accepted=int(usage.get("n_accepted", 0)),
            answered_by=str(record.get("answered_by") or "") if record.get("escalated") else "",
            has_reply=bool(usage),
        )


def _numbers(table: object) -> dict[str, float]:
    if not isinstance(table, dict):
        return {}
    return {str(key): value for key, value in table.items() if isinstance(value, (int, float))}


def fit_parts(parts: list[tuple[int, str]], width: int, separator: str) -> str:
    """Join as many parts as fit, dropping the highest rank first; a single part is truncated.

    Args:
        parts: (rank, text).
        width: in terminal cells.
        separator: between two parts.
    """
    kept = list(parts)
    while len(kept) > 1 and cell_len(separator.join(text for _, text in kept)) > width:
        kept.remove(max(kept))
    return fmt.one_line(separator.join(text for _, text in kept), width)


class StatusLine(Static):
    """The status line."""

    values: reactive[StatusValues] = reactive(StatusValues(), init=False)

    def __init__(self) -> None:
        super().__init__(id="status", markup=False)

    def render(self) -> Content:
        """Return as many parts as fit."""
        separator = ", " if self.app.has_class("-plain") else " · "
        return Content(fmt.clean(fit_parts(self.values.parts(), self.content_size.width, separator)))

    def show_progress(self, n_processed: int, n_generated: int, first_token_s: float, decode_s: float) -> None:
        """Show a running reply; see `StatusValues.while_running`."""
        self.values = self.values.while_running(n_processed, n_generated, first_token_s, decode_s)

    def change(self, **changes: Any) -> None:
        """Change some values."""
        self.values = replace(self.values, **changes)
