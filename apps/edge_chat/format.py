"""Text for the chat: plurals, dates, text on one line, text without control characters. Pure functions."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TextIO

from edge.units import plural

__all__ = ["clean", "day_group", "exact_time", "one_line", "plural", "rate", "short_time", "takes_unicode"]


def rate(tokens_per_s: float) -> str:
    """Format a decode speed: "12.3 tok/s"."""
    return f"{tokens_per_s:.1f} tok/s" if tokens_per_s < 100 else f"{tokens_per_s:.0f} tok/s"


def takes_unicode(stream: TextIO | None) -> bool:
    """Return whether a stream takes more than ASCII or another small set of characters."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")


def one_line(text: str, width: int) -> str:
    """Put a text on one line, truncated to `width` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: max(0, width - 1)].rstrip() + "…"


def day_group(when: float, now: float) -> str:
    """Return the heading for a conversation of that time. Both are Unix times in seconds."""
    today = datetime.fromtimestamp(now).date()
    day = datetime.fromtimestamp(when).date()
    if day >= today:
        return "Today"
    if day == today - timedelta(days=1):
        return "Yesterday"
    if day > today - timedelta(days=7):
        return "Last 7 days"
    if day > today - timedelta(days=30):
        return "Last 30 days"
    return "Older"


def short_time(when: float, now: float) -> str:
    """Format a time as short as the headings of `day_group` allow: "14:05", "Mon", "3 Nov".

    Both are Unix times in seconds. A time after `now`, as when a clock was set back, is "now".
    """
    if when > now:
        return "now"
    time = datetime.fromtimestamp(when)
    group = day_group(when, now)
    if group in ("Today", "Yesterday"):
        return f"{time:%H:%M}"
    if group == "Last 7 days":
        return f"{time:%a}"
    return f"{time.day} {time:%b}" if time.year == datetime.fromtimestamp(now).year else f"{time:%Y-%m-%d}"


def exact_time(when: float, now: float) -> str:
    """Like `short_time`, to the second, for two conversations that would look the same."""
    if when > now:
        return "now"
    time = datetime.fromtimestamp(when)
    return f"{time:%H:%M:%S}" if day_group(when, now) in ("Today", "Yesterday") else f"{time.day} {time:%b %H:%M:%S}"


# Control characters are shown, not sent: a model, file or title must not control the terminal. Line ends that str.splitlines
# knows and Markdown does not are normalised, or the two would count lines differently.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= {0x7F: 0x2421, 0x85: 0x0A, 0x2028: 0x0A, 0x2029: 0x0A}
_VISIBLE |= {code: 0xFFFD for code in range(0x80, 0xA0) if code != 0x85}


def clean(text: str) -> str:
    """Make a text safe to show: replace control characters by visible ones, and all line ends by "\\n"."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)
