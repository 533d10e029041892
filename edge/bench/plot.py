"""A result as a picture: one SVG file that needs nothing else, readable on light and on dark backgrounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from edge.bench.values import Result, Row, Stat

__all__ = ["plot"]

_WIDTH, _LEFT, _RIGHT, _STEP, _TITLE, _GAP = 860, 300, 90, 26, 34, 22
_COLOURS = {"llamacpp": "#2563eb", "onnx": "#d97706", "coreml": "#059669"}
_OTHER = "#6b7280"
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2937}.dim{fill:#6b7280}.head{font-weight:600;font-size:14px}"
    ".back{fill:#ffffff}.line{stroke:#1f2937;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.dim{fill:#9ca3af}.back{fill:#111827}.line{stroke:#e5e7eb}}"
)


def plot(result: Result) -> str:
    """Bars of decode, prefill, time to first token and peak memory. Whiskers go from the lowest to the highest round.

    Args:
        result: of `run_bench`; rows without a round are left out.

    Returns:
        The text of an SVG file.
    """
    rows = [row for row in result.rows if row.decode_tokens_per_s is not None]
    panels: list[tuple[str, Callable[[Row], Stat | None], str]] = [
        (
            f"Decode, tokens/s ({result.n_decode} written after {result.n_prompt} read)",
            lambda row: row.decode_tokens_per_s,
            ".1f",
        ),
        (f"Prefill, tokens/s ({result.n_prompt} read)", lambda row: row.prefill_tokens_per_s, ".0f"),
        ("Time to first token, ms (shorter is better)", lambda row: _scaled(row.first_token_s, 1000), ".0f"),
        ("Peak memory of the process, MiB", lambda row: _exact(row.peak_bytes), ".0f"),
    ]
    parts: list[str] = []
    top = 12.0
    for title, value, form in panels:
        parts.append(f'<text class="head" x="12" y="{top + 16:.0f}">{escape(title)}</text>')
        parts += _bars(rows, value, form, top + _TITLE - 6)
        top += _TITLE + _STEP * len(rows) + _GAP
    about = f"{result.processor}; {result.measured_at[:10]}; medians of {result.n_rounds} rounds"
    parts.append(f'<text class="dim" x="12" y="{top + 8:.0f}">{escape(about)}</text>')
    height = top + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img">'
        f'<style>{_STYLE}</style><rect class="back" width="{_WIDTH}" height="{height:.0f}" rx="8"/>{"".join(parts)}</svg>\n'
    )


def _bars(rows: Sequence[Row], value: Callable[[Row], Stat | None], form: str, top: float) -> list[str]:
    found = [(row, stat) for row in rows if (stat := value(row)) is not None]
    largest = max((stat.max for _, stat in found), default=0.0) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / largest
    parts = []
    for index, (row, stat) in enumerate(found):
        y = top + index * _STEP
        end, low, high = (_LEFT + scale * number for number in (stat.median, stat.min, stat.max))
        colour = _COLOURS.get(row.setting.backend, _OTHER)
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 15:.1f}" text-anchor="end">{escape(_short(row.name))}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{y + 3:.1f}" width="{end - _LEFT:.1f}" height="16" rx="2" fill="{colour}"/>')
        if high - low > 1:
            parts.append(f'<path class="line" d="M{low:.1f} {y + 11:.1f}H{high:.1f}" />')
        parts.append(f'<text class="dim" x="{high + 8:.1f}" y="{y + 15:.1f}">{stat.median:{form}}</text>')
    return parts


def _scaled(stat: Stat | None, factor: float) -> Stat | None:
    if stat is None:
        return None
    return Stat(
        median=stat.median * factor,
        quartile_1=stat.quartile_1 * factor,
        quartile_3=stat.quartile_3 * factor,
        min=stat.min * factor,
        max=stat.max * factor,
    )


def _exact(n_bytes: int | None) -> Stat | None:
    if n_bytes is None:
        return None
    value = n_bytes / 2**20
    return Stat(median=value, quartile_1=value, quartile_3=value, min=value, max=value)


def _short(name: str) -> str:
    return name if len(name) <= 40 else "…" + name[-39:]
