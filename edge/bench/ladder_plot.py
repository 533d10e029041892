"""A ladder as a picture, one self-contained SVG file that is readable on light and on dark backgrounds; and as Markdown."""

from __future__ import annotations

from html import escape

from edge.bench.ladder_values import Ladder, Rung

__all__ = ["ladder_markdown", "plot_ladder"]

_WIDTH, _LEFT, _RIGHT, _STEP, _TOP = 860, 260, 150, 26, 66
_NAME = 32  # characters
_HEADINGS = {"start": "the naive way", "lossless": "nothing lost", "lossy": "something lost"}
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2937}.dim{fill:#6b7280}.head{font-weight:600;font-size:14px}"
    ".back{fill:#ffffff}.first{fill:#d97706}.rest{fill:#2563eb}.out{opacity:.35}.line{stroke:#9ca3af;stroke-dasharray:3 3}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.dim{fill:#9ca3af}.back{fill:#111827}}"
)


def plot_ladder(ladder: Ladder) -> str:
    """Draw a bar for each rung of the chat: until the first word, and until the last. Pale rungs were tried and not taken.

    Args:
        ladder: from `run_ladder`.

    Returns:
        The text of an SVG file.
    """
    rungs = [rung for rung in ladder.rungs if rung.chat is not None]
    naive_s = rungs[0].chat.total_s if rungs and rungs[0].chat is not None else 1.0
    longest = max((rung.chat.total_s for rung in rungs if rung.chat is not None), default=1.0)
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    work = ladder.work
    title = f"Time of a reply in the chat, {ladder.model}: mean of {work.n_turns} turns, {work.n_reply} tokens each"
    parts = [
        f'<text class="head" x="12" y="24">{escape(title)}</text>',
        '<rect class="first" x="12" y="36" width="12" height="12" rx="2"/><text x="30" y="47">until the first word</text>',
        '<rect class="rest" x="180" y="36" width="12" height="12" rx="2"/><text x="198" y="47">until the last</text>',
        '<text class="dim" x="310" y="47">pale: tried, and not taken</text>',
    ]
    y, kind = float(_TOP), ""
    for rung in rungs:
        if rung.kind != kind:
            kind = rung.kind
            parts.append(f'<line class="line" x1="12" y1="{y:.0f}" x2="{_WIDTH - 12}" y2="{y:.0f}"/>')
            parts.append(f'<text class="dim" x="12" y="{y + 16:.0f}">{_HEADINGS[kind]}</text>')
            y += 20
        parts.append(_bar(rung, y, scale, naive_s))
        y += _STEP
    about = f"{ladder.processor}; {ladder.measured_at[:10]}; edge {ladder.edge}"
    parts.append(f'<text class="dim" x="12" y="{y + 18:.0f}">{escape(about)}</text>')
    height = y + 32
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img">'
        f'<style>{_STYLE}</style><rect class="back" width="{_WIDTH}" height="{height:.0f}" rx="8"/>{"".join(parts)}</svg>\n'
    )


def _bar(rung: Rung, y: float, scale: float, naive_s: float) -> str:
    assert rung.chat is not None
    first, total = scale * rung.chat.first_s, scale * rung.chat.total_s
    name = rung.title if len(rung.title) <= _NAME else rung.title[: _NAME - 1] + "…"
    label = f"{rung.chat.total_s:.2f} s, {naive_s / rung.chat.total_s:.1f}x"
    return (
        f'<g class="{"in" if rung.is_taken else "out"}">'
        f'<text x="{_LEFT - 10}" y="{y + 16:.0f}" text-anchor="end">{escape(name)}</text>'
        f'<rect class="first" x="{_LEFT}" y="{y + 4:.0f}" width="{max(1.0, first):.1f}" height="16" rx="2"/>'
        f'<rect class="rest" x="{_LEFT + first:.1f}" y="{y + 4:.0f}" width="{max(1.0, total - first):.1f}" height="16" rx="2"/>'
        f'<text x="{_LEFT + total + 8:.1f}" y="{y + 16:.0f}">{label}</text></g>'
    )


def ladder_markdown(ladder: Ladder) -> str:
    """Return the rungs that were measured as a table; those that were taken have bold factors."""
    work = ladder.work
    lines = [
        f"{ladder.model} on {ladder.processor}, {ladder.measured_at[:10]}; workload: {work.name}.",
        "",
        "| step | first word | reply | times faster | document | per item | start | KL | top-1 | same replies |",
        "|---|" + "---:|" * 9,
    ]
    naive = ladder.rungs[0].chat if ladder.rungs else None
    for rung in ladder.rungs:
        chat, about = rung.chat, rung.document
        if chat is None or naive is None:
            continue
        times = f"{naive.total_s / chat.total_s:.1f}"
        cells = (
            rung.title + ("" if rung.is_taken else " (not taken)"),
            f"{chat.first_s:.2f} s",
            f"{chat.total_s:.2f} s",
            f"**{times}**" if rung.is_taken else times,
            f"{about.total_s:.2f} s" if about is not None else "",
            f"{1000 * rung.score_s:.0f} ms" if rung.score_s is not None else "",
            f"{rung.ready_s:.1f} s" if rung.ready_s is not None else "",
            f"{rung.kl:.1e}" if rung.kl else "" if rung.kl is None else "0",
            f"{rung.top1:.1%}" if rung.top1 is not None else "",
            f"{chat.n_same} of {chat.n_turns}",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
