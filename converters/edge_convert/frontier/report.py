"""A frontier as JSON, as a table in Markdown, and as one self-contained SVG file, readable on light and on dark backgrounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import msgspec

from edge.errors import ModelFileError
from edge.files import read_json
from edge_convert.frontier.points import WHOLE, Frontier, Point

__all__ = ["REPORT", "frontier_markdown", "notes", "plot_frontier", "read_frontier", "rows", "write_frontier"]

REPORT = "frontier.json"
COLUMNS = ("point", "weights", "KL", "top-1", "trained", "decode", "prefill", "answers kept")

_MAX_BYTES = 4 << 20
_AGAIN = "Search again: --frontier --minutes 60 --force"
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _GAP = 430, 300, 56, 40, 40, 20
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1f2937}.dim{fill:#6b7280}.head{font-weight:600;font-size:13px}"
    ".back{fill:#ffffff}.grid{stroke:#e5e7eb}.last{fill:#2563eb}.out{fill:#9ca3af}.path{fill:none;stroke:#2563eb;opacity:.5}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.dim{fill:#9ca3af}.back{fill:#111827}.grid{stroke:#374151}"
    ".last{fill:#60a5fa}.path{stroke:#60a5fa}}"
)


def write_frontier(folder: Path, frontier: Frontier) -> None:
    """Write the report's files into a folder."""
    (folder / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(frontier)))
    (folder / "frontier.md").write_text(frontier_markdown(frontier), encoding="utf-8")
    (folder / "frontier.svg").write_text(plot_frontier(frontier), encoding="utf-8")


def read_frontier(folder: Path) -> Frontier:
    """Read the report in a folder.

    Raises:
        ModelFileError: it is missing or damaged, or a student is missing.
    """
    frontier = read_json(folder / REPORT, Frontier, _MAX_BYTES)
    names = [point.name for point in frontier.points]
    if WHOLE not in names or not frontier.finalists or not set(frontier.finalists) <= set(names) - {WHOLE}:
        raise ModelFileError(f"{folder / REPORT} is damaged: its points and finalists do not fit together.", _AGAIN)
    missing = [name for name in frontier.finalists if Path(name).name != name or not (folder / name / "config.json").is_file()]
    if missing:
        raise ModelFileError(f"{folder} lacks the student {missing[0][:80]}.", _AGAIN)
    return frontier


def rows(frontier: Frontier) -> list[tuple[str, ...]]:
    """Return the table's cells, a row for each point, slowest first; "~" marks estimates."""
    found: list[tuple[str, ...]] = []
    for point in frontier.points:
        kept = "" if point.answers_kept is None or not point.n_answers else f"{point.answers_kept:.0%} of {point.n_answers}"
        trained = "" if point.name == WHOLE else f"{point.seconds:.0f} s, {point.n_tokens:,} tokens"
        found.append(
            (
                point.name,
                f"{point.n_params / 1e6:,.1f} M",
                f"{point.divergence:.3f}",
                f"{point.top1:.1%}",
                trained,
                _times(point.decode, point.decode_estimate),
                _times(point.prefill, point.prefill_estimate),
                kept,
            )
        )
    return found


def _times(measured: float | None, estimate: float) -> str:
    return f"~{estimate:.2f}x" if measured is None else f"{measured:.2f}x"


def notes(frontier: Frontier) -> list[str]:
    """Return what the table means, a sentence each."""
    found = [
        "KL and top-1 are means over the held-out texts, against the whole model"
        + (" over the tokens that stay." if frontier.n_vocab < frontier.whole_vocab else "."),
        "Speed is that over the same text, in times the teacher's; ~ is estimated from the weights that a token reads.",
    ]
    if frontier.n_vocab < frontier.whole_vocab:
        found.append(
            f"{frontier.n_vocab:,} of {frontier.whole_vocab:,} tokens stay; held-out texts take {frontier.growth:.3f} times "
            "as many tokens, which speeds include."
        )
    if frontier.teacher_decode and frontier.teacher_prefill:
        found.append(
            f"Measured in {frontier.layout} on {frontier.machine}: the teacher decodes {frontier.teacher_decode:.0f} tokens/s "
            f"and prefills {frontier.teacher_prefill:.0f}."
        )
    return found


def frontier_markdown(frontier: Frontier) -> str:
    """Return the table and what it means; finalists are bold."""
    lines = [
        f"# {frontier.model}: students by speed and quality",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" + "|---:" * 7 + "|",
    ]
    for name, *cells in rows(frontier):
        lines.append("| " + " | ".join([f"**{name}**" if name in frontier.finalists else name, *cells]) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(frontier))]) + "\n"


def plot_frontier(frontier: Frontier) -> str:
    """Draw four plots: KL, top-1 and kept answers over decode speed, and KL over prefill speed. Finalists are blue.

    Returns:
        The text of an SVG file.
    """
    decode, prefill = "decode speed, times the teacher's", "prefill speed, times the teacher's"

    def kl(point: Point) -> float | None:
        return point.divergence

    panels: list[tuple[str, str, Callable[[Point], float], Callable[[Point], float | None]]] = [
        ("KL (lower is better)", decode, lambda point: point.speed, kl),
        ("KL (lower is better)", prefill, lambda point: point.prefill_speed, kl),
        ("top-1 (higher is better)", decode, lambda point: point.speed, lambda point: point.top1),
        ("answers kept (higher is better)", decode, lambda point: point.speed, lambda point: point.answers_kept),
    ]
    parts = []
    for number, (title, axis, x, y) in enumerate(panels):
        shown = [(point, x(point), value) for point in frontier.points if (value := y(point)) is not None]
        if shown:
            left, top = number % 2 * (_WIDTH + _GAP), number // 2 * (_HEIGHT + _GAP)
            parts.append(f'<g transform="translate({left} {top})">{_panel(title, axis, shown, frontier.finalists)}</g>')
    width, height = 2 * _WIDTH + _GAP, 2 * _HEIGHT + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(frontier.model)}: students by speed and quality"><style>{_STYLE}</style>'
        f'<rect class="back" width="{width}" height="{height}" rx="8"/>{"".join(parts)}</svg>\n'
    )


def _panel(title: str, axis: str, shown: Sequence[tuple[Point, float, float]], finalists: Sequence[str]) -> str:
    x_low, x_high = _range([x for _, x, _ in shown])
    y_low, y_high = _range([y for _, _, y in shown])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return _LEFT + (_WIDTH - _LEFT - 16) * across, _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * up

    parts = [f'<text class="head" x="12" y="22">{escape(title)}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = x_low + share * (x_high - x_low), y_low + share * (y_high - y_low)
        across, up = place(x, y)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 16}" y1="{up:.1f}" y2="{up:.1f}"/>')
        parts.append(f'<text class="dim" x="{_LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">{y:.2f}</text>')
        parts.append(f'<text class="dim" x="{across:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{x:.2f}</text>')
    parts.append(f'<text class="dim" x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(axis)}</text>')
    for point, x, y in sorted(shown, key=lambda one: one[1]):
        across, up = place(x, y)
        kind = "last" if point.name in finalists or point.name == WHOLE else "out"
        end = across > _WIDTH * 0.6
        text_x, anchor = (across - 8, "end") if end else (across + 8, "start")
        parts.append(f'<circle class="{kind}" cx="{across:.1f}" cy="{up:.1f}" r="4.5"/>')
        parts.append(f'<text x="{text_x:.1f}" y="{up - 6:.1f}" text-anchor="{anchor}">{escape(point.name)}</text>')
    return "".join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis, a tenth beyond the values."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.1 or max(abs(high) * 0.1, 0.1)
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin if math.isfinite(high) else low + 1
