"""The card as one HTML file that needs nothing else: tables, and plots drawn as SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape

from edge.names import TITLES
from edge_convert.evaluate.card import (
    COLUMNS,
    KIND_COLUMNS,
    KINDS_TITLE,
    USE_COLUMNS,
    Card,
    Row,
    failures,
    has_usefulness,
    kind_texts,
    notes,
    row_texts,
    use_texts,
    used_columns,
)
from edge_convert.evaluate.tasks.report import TITLE

__all__ = ["html_page"]

_LEFT = 58
"""Left edge of the scatter plot, right of the numbers of its y axis."""
_STYLE = """
:root { color-scheme: light dark; --text: #1f2937; --dim: #6b7280; --line: #e5e7eb; --back: #ffffff; --bad: #b91c1c;
  --checkpoint: #6b7280; --gguf: #2563eb; --onnx: #d97706; --coreml: #059669; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e5e7eb; --dim: #9ca3af; --line: #374151; --back: #111827; --bad: #f87171;
    --checkpoint: #9ca3af; --gguf: #60a5fa; --onnx: #fbbf24; --coreml: #34d399; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 78rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; font-weight: 600; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--dim); font-weight: 500; }
th:first-child, .said td:last-child, .said th:last-child { text-align: left; font-weight: inherit; }
tr.failed > * { color: var(--bad); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); column-gap: 2.5rem; }
.bar { display: flex; align-items: center; gap: .4rem; margin: -.1rem 0 .45rem; font-variant-numeric: tabular-nums; }
.bar i { height: .85rem; min-width: 1px; border-radius: 2px; } .bar span { color: var(--dim); white-space: nowrap; }
svg { width: 100%; max-width: 34rem; height: auto; display: block; }
svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
svg .dim { fill: var(--dim); } svg .grid { stroke: var(--line); } ul { color: var(--dim); padding-left: 1.2rem; }
.key { margin: 1.5rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; vertical-align: -1px; }
.checkpoint { background: var(--checkpoint); fill: var(--checkpoint); } .gguf { background: var(--gguf); fill: var(--gguf); }
.onnx { background: var(--onnx); fill: var(--onnx); } .coreml { background: var(--coreml); fill: var(--coreml); }
@media (max-width: 40rem) { /* the names stay where they are while the numbers are pushed aside */
  body { margin: 1rem auto; }
  th:first-child { position: sticky; left: 0; background: var(--back); white-space: normal; min-width: 7.5rem; max-width: 9rem;
    overflow-wrap: anywhere; border-right: 1px solid var(--line); }
}
"""


def html_page(card: Card) -> str:
    """Return the card as a self-contained page: no scripts, nothing is loaded."""
    title = card.title
    used = used_columns(card)
    main = _table(card, [COLUMNS[index] for index in used], lambda row: [row_texts(row)[index] for index in used])
    by_kind = _table(card, KIND_COLUMNS, kind_texts, ' class="said"')
    use = ""
    if has_usefulness(card):
        said = "".join(f"<li><b>{escape(row.name)}</b>: {escape(row.good_for)}</li>\n" for row in card.rows if row.good_for)
        use = f"<h2>{escape(TITLE)}</h2>\n{_table(card, USE_COLUMNS, use_texts)}<ul>\n{said}</ul>\n"
    formats = dict.fromkeys(row.format for row in card.rows)
    key = "".join(f'<span><i class="{form}"></i>{TITLES.get(form, form)}</span>' for form in formats)
    plots = "".join(f"<section><h2>{escape(name)}</h2>{plot}</section>\n" for name, plot in _plots(card) if plot)
    listed = "".join(f"<li>{escape(note)}</li>\n" for note in notes(card) + failures(card))
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n'
        f'{main}<div class="plots">\n{plots}</div>\n<p class="key">{key}</p>\n'
        f"{use}<h2>{escape(KINDS_TITLE)}</h2>\n{by_kind}<ul>\n{listed}</ul>\n</body>\n</html>\n"
    )


def _table(card: Card, columns: Sequence[str], texts: Callable[[Row], Sequence[str]], kind: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = ""
    for row in card.rows:
        failed = ' class="failed"' if row.failures else ""
        name, *rest = map(escape, texts(row))
        body += f'<tr{failed}><th scope="row">{name}</th>' + "".join(f"<td>{text}</td>" for text in rest) + "</tr>\n"
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _plots(card: Card) -> list[tuple[str, str]]:
    short = _short_names(card)
    others = [row for row in card.rows if not row.is_reference]
    timed = [row for row in card.rows if row.speed is not None]
    found = []

    def bars(title: str, rows: Sequence[Row], value: Callable[[Row], float], form: str) -> None:
        found.append((title, _bars(rows, short, value, form)))

    if others:
        found.append(("Size and KL divergence (lower left is better)", _scatter(others, short)))
        bars("KL divergence, 99th percentile (shorter is better)", others, lambda row: row.quality.all.kl_p99, "{:.3g}")
        bars("Top-1 agreement (longer is better)", others, lambda row: 100 * row.quality.all.top1, "{:.1f}%")
    if timed:
        bars("Decode, tokens/s", timed, lambda row: row.speed.decode_tokens_per_s if row.speed else 0, "{:.1f}")
        bars("Prefill, tokens/s", timed, lambda row: row.speed.prefill_tokens_per_s if row.speed else 0, "{:.0f}")
        bars("Peak memory, MB", timed, lambda row: row.speed.peak_bytes / 1e6 if row.speed else 0, "{:.0f}")
    return found


def _bars(rows: Sequence[Row], short: Mapping[str, str], value: Callable[[Row], float], form: str) -> str:
    """Draw horizontal bars from 0, a name above each, as boxes: their texts keep their size in a narrow window."""
    largest = max((value(row) for row in rows), default=0) or 1
    parts = []
    for row in rows:
        share = value(row) / largest
        parts.append(
            f'<div>{escape(short[row.name])}</div><div class="bar">'
            f'<i class="{row.format}" style="width:calc({share:.4f}*(100% - 4.5rem))"></i>'
            f"<span>{form.format(value(row))}</span></div>"
        )
    return "".join(parts)


def _scatter(rows: Sequence[Row], short: Mapping[str, str]) -> str:
    """Draw size on the x axis from 0, KL on a logarithmic y axis."""
    width, height, bottom = 400, 270, 34
    largest = max(row.size_bytes for row in rows) / 1e6 * 1.15
    values = [max(row.quality.all.kl_mean, 1e-6) for row in rows]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    high = max(high, low + 1)

    def place(size_mb: float, kl: float) -> tuple[float, float]:
        x = _LEFT + (width - _LEFT - 10) * size_mb / largest
        y = (height - bottom) - (height - bottom - 12) * (math.log10(kl) - low) / (high - low)
        return x, y

    parts = []
    for power in range(low, high + 1):
        _, y = place(0, 10.0**power)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = f"{10.0**power:.{max(0, -power)}f}"
        parts.append(f'<text class="dim" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in _ticks(largest):
        x, _ = place(tick, 10.0**low)
        parts.append(f'<text class="dim" x="{x:.1f}" y="{height - 12}" text-anchor="middle">{tick:g} MB</text>')
    points = [place(row.size_bytes / 1e6, kl) for row, kl in zip(rows, values, strict=True)]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for row, (x, y) in zip(rows, points, strict=True):
        name = short[row.name]
        left_edge, base = _free_place(x, y, 7.2 * len(name), width, taken)
        parts.append(f'<circle class="{row.format}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(f'<text x="{left_edge:.1f}" y="{base:.1f}">{escape(name)}</text>')
    about = "KL divergence of each model by its size; the numbers are in the table above."
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{about}">{"".join(parts)}</svg>'


def _free_place(
    x: float, y: float, length: float, width: float, taken: list[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """Return the left edge and base of a label beside its point that covers no others; its box is added to those taken."""
    beside = [(x + 9, y + 4), (x - 9 - length, y + 4)]
    around = [(min(x - length / 2, width - length), y + step) for step in (-11, 20, -27, 36, -43, 52)]
    boxes = [(left, base - 12, left + length, base + 3) for left, base in (*beside, *around)]
    inside = [box for box in boxes if box[0] >= _LEFT and box[2] <= width and box[1] >= 0]
    free = (
        box
        for box in inside
        if not any(box[0] < right and box[2] > left and box[1] < low and box[3] > top for left, top, right, low in taken)
    )
    box = next(free, boxes[1])
    taken.append(box)
    return box[0], box[3] - 3


def _ticks(largest: float) -> list[float]:
    """Return three to six round numbers from 0 up to the largest."""
    step = 10.0 ** math.floor(math.log10(largest))
    while largest / step < 3:
        step /= 2
    while largest / step > 6:
        step *= 2
    return [step * index for index in range(int(largest / step) + 1)]


def _short_names(card: Card) -> dict[str, str]:
    """Return names for plots: without the reference's name, which most begin with, if they stay different."""
    names = [row.name for row in card.rows]
    start = re.compile(re.escape(card.reference) + "[-.](?=.)")
    short = {name: start.sub("", name, count=1) if start.match(name) else name for name in names}
    if len(set(short.values())) < len(short):
        short = {name: name for name in names}
    return {name: text if len(text) <= 44 else "…" + text[-43:] for name, text in short.items()}
