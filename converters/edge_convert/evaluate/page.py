"""The card as one HTML file that needs nothing else: tables, and plots drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from edge_convert.evaluate.card import COLUMNS, KIND_COLUMNS, KINDS_TITLE, Card, Row, cells, failures, kinds, notes

__all__ = ["html_page"]

_COLOURS = {"checkpoint": "#6b7280", "gguf": "#2563eb", "onnx": "#d97706", "coreml": "#059669"}
_TITLES = {"checkpoint": "checkpoint", "gguf": "GGUF", "onnx": "ONNX", "coreml": "Core ML"}
_STYLE = """
:root { color-scheme: light dark; --text: #1f2937; --dim: #6b7280; --line: #e5e7eb; --back: #ffffff; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e5e7eb; --dim: #9ca3af; --line: #374151; --back: #111827; --bad: #f87171; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 78rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.05rem; margin: 0 0 .5rem; font-weight: 600; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--dim); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
tr.failed td { color: var(--bad); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.5rem 2.5rem;
  margin: 2rem 0; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--text); font: 13px system-ui, sans-serif; }
svg .dim { fill: var(--dim); } svg .grid { stroke: var(--line); } ul { color: var(--dim); padding-left: 1.2rem; }
.key span { margin-right: 1.2rem; } .key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin-right: .4em; vertical-align: -1px; }
"""


def html_page(card: Card, title: str = "What the converted models are worth") -> str:
    """The card as a self-contained page: no scripts, nothing is loaded."""
    used = [index for index in range(len(COLUMNS)) if any(cells(row)[index] for row in card.rows)]
    main = _table(card, [COLUMNS[index] for index in used], lambda row: [cells(row)[index] for index in used])
    by_kind = _table(card, KIND_COLUMNS, kinds)
    formats = dict.fromkeys(row.format for row in card.rows)
    key = "".join(f'<span><i style="background:{_COLOURS[form]}"></i>{_TITLES[form]}</span>' for form in formats)
    plots = "".join(f"<section><h2>{escape(name)}</h2>{svg}</section>\n" for name, svg in _plots(card) if svg)
    listed = "".join(f"<li>{escape(note)}</li>\n" for note in notes(card) + failures(card))
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n'
        f'{main}<div class="plots">\n{plots}</div>\n<p class="key">{key}</p>\n'
        f"<h2>{escape(KINDS_TITLE)}</h2>\n{by_kind}<ul>\n{listed}</ul>\n</body>\n</html>\n"
    )


def _table(card: Card, columns: Sequence[str], texts: Callable[[Row], Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = ""
    for row in card.rows:
        kind = ' class="failed"' if row.failures else ""
        body += f"<tr{kind}>" + "".join(f"<td>{escape(text)}</td>" for text in texts(row)) + "</tr>\n"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _plots(card: Card) -> list[tuple[str, str]]:
    others = [row for row in card.rows if not row.is_reference]
    timed = [row for row in card.rows if row.speed is not None]
    found = []
    if others:
        found.append(("Size and KL divergence (lower left is better)", _scatter(others)))
        found.append(
            ("KL divergence, 99th percentile (shorter is better)", _bars(others, lambda row: row.quality.all.kl_p99, "{:.3g}"))
        )
        found.append(("Top-1 agreement (longer is better)", _bars(others, lambda row: 100 * row.quality.all.top1, "{:.1f}%")))
    if timed:
        found.append(
            ("Decode, tokens/s", _bars(timed, lambda row: row.speed.decode_tokens_per_s if row.speed else 0, "{:.1f}"))
        )
        found.append(
            ("Prefill, tokens/s", _bars(timed, lambda row: row.speed.prefill_tokens_per_s if row.speed else 0, "{:.0f}"))
        )
        found.append(("Peak memory, MB", _bars(timed, lambda row: row.speed.peak_bytes / 1e6 if row.speed else 0, "{:.0f}")))
    return found


def _bars(rows: Sequence[Row], value: Callable[[Row], float], form: str) -> str:
    """Horizontal bars from 0, a name above each."""
    width, step = 480, 42
    largest = max((value(row) for row in rows), default=0) or 1
    parts = []
    for index, row in enumerate(rows):
        top, length = index * step, (width - 80) * value(row) / largest
        parts.append(
            f'<text x="0" y="{top + 14}">{escape(_short(row.name))}</text>'
            f'<rect x="0" y="{top + 20}" width="{max(length, 1):.1f}" height="13" rx="2" fill="{_COLOURS[row.format]}"/>'
            f'<text class="dim" x="{max(length, 1) + 6:.1f}" y="{top + 31}">{form.format(value(row))}</text>'
        )
    return f'<svg viewBox="0 0 {width} {len(rows) * step}" role="img">{"".join(parts)}</svg>'


def _scatter(rows: Sequence[Row]) -> str:
    """Size on the x axis from 0, KL on a logarithmic y axis."""
    width, height, left, bottom = 480, 300, 52, 34
    largest = max(row.size_bytes for row in rows) / 1e6 * 1.15
    values = [max(row.quality.all.kl_mean, 1e-6) for row in rows]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    high = max(high, low + 1)

    def place(size_mb: float, kl: float) -> tuple[float, float]:
        x = left + (width - left - 10) * size_mb / largest
        y = (height - bottom) - (height - bottom - 12) * (math.log10(kl) - low) / (high - low)
        return x, y

    parts = []
    for power in range(low, high + 1):
        _, y = place(0, 10.0**power)
        parts.append(f'<line class="grid" x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="dim" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for tick in _ticks(largest):
        x, _ = place(tick, 10.0**low)
        parts.append(f'<text class="dim" x="{x:.1f}" y="{height - 12}" text-anchor="middle">{tick:g} MB</text>')
    points = [place(row.size_bytes / 1e6, kl) for row, kl in zip(rows, values, strict=True)]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for row, (x, y) in zip(rows, points, strict=True):
        left_edge, base = _free_place(x, y, 7.8 * len(_short(row.name)), width, taken)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{_COLOURS[row.format]}"/>')
        parts.append(f'<text x="{left_edge:.1f}" y="{base:.1f}">{escape(_short(row.name))}</text>')
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _free_place(
    x: float, y: float, length: float, width: float, taken: list[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """Where a label of some length goes beside its point without covering others; its box is added to those taken."""
    beside = [(x + 9, y + 4), (x - 9 - length, y + 4)]
    around = [(min(x - length / 2, width - length), y + step) for step in (-11, 20, -27, 36, -43, 52)]
    boxes = [(left, base - 12, left + length, base + 3) for left, base in (*beside, *around)]
    inside = [box for box in boxes if box[0] >= 52 and box[2] <= width and box[1] >= 0]
    free = (
        box
        for box in inside
        if not any(box[0] < right and box[2] > left and box[1] < low and box[3] > top for left, top, right, low in taken)
    )
    box = next(free, boxes[1])
    taken.append(box)
    return box[0], box[3] - 3


def _ticks(largest: float) -> list[float]:
    """Three to six round numbers from 0 up to the largest."""
    step = 10.0 ** math.floor(math.log10(largest))
    while largest / step < 3:
        step /= 2
    while largest / step > 6:
        step *= 2
    return [step * index for index in range(int(largest / step) + 1)]


def _short(name: str) -> str:
    return name if len(name) <= 44 else "…" + name[-43:]
