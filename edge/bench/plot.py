"""A result as a picture: one self-contained SVG file, readable on light and on dark backgrounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from msgspec.structs import asdict

from edge.bench.values import Result, Row, Stat, stat

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
    """Draw bars of decode, prefill, time to first token and peak memory. Whiskers go from the lowest to the highest round.

    Args:
        result: from `run_bench`; rows without a round are left out.

    Returns:
        The text of an SVG file.
    """
    rows = [row for row in result.rows if row.decode_tokens_per_s is not None]
    panels: list[tuple[str, Callable[[Row], Stat | None], str]] = [
        (f"Decode, tokens/s ({result.n_decode} after {result.n_prompt})", lambda row: row.decode_tokens_per_s, ".1f"),
        (f"Prefill, tokens/s ({result.n_prompt})", lambda row: row.prefill_tokens_per_s, ".0f"),
        ("Time to first token, ms (shorter is better)", lambda row: _scaled(row.first_token_s, 1000), ".0f"),
        ("Peak memory of the process, MB", lambda row: stat([row.peak_bytes / 1e6]) if row.peak_bytes else None, ".0f"),
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
    found = [(row, bar) for row in rows if (bar := value(row)) is not None]
    largest = max((bar.max for _, bar in found), default=0.0) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / largest
    parts = []
    for index, (row, bar) in enumerate(found):
        y = top + index * _STEP
        end, low, high = (_LEFT + scale * number for number in (bar.median, bar.min, bar.max))
        colour = _COLOURS.get(row.setting.backend, _OTHER)
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 15:.1f}" text-anchor="end">{escape(_short(row.name))}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{y + 3:.1f}" width="{end - _LEFT:.1f}" height="16" rx="2" fill="{colour}"/>')
        if high - low > 1:
            parts.append(f'<path class="line" d="M{low:.1f} {y + 11:.1f}H{high:.1f}" />')
        parts.append(f'<text class="dim" x="{high + 8:.1f}" y="{y + 15:.1f}">{bar.median:{form}}</text>')
    return parts


def _scaled(values: Stat | None, factor: float) -> Stat | None:
    return Stat(**{name: value * factor for name, value in asdict(values).items()}) if values is not None else None


def _short(name: str) -> str:
    return name if len(name) <= 40 else "…" + name[-39:]
