"""Numbers, sizes and dates as people read them. Pure functions; the current time is always an argument."""

from __future__ import annotations

from datetime import datetime, timedelta

__all__ = [
    "clean",
    "count",
    "day_group",
    "exact_time",
    "n_bytes",
    "one_line",
    "plural",
    "rate",
    "seconds",
    "short_time",
]


def count(number: int) -> str:
    """1234567 -> "1,234,567"."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """A number with its noun: "1 message", "2,000 messages"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def n_bytes(size_bytes: int) -> str:
    """A size in decimal units, as download pages give it: 98_000_000 -> "98 MB"."""
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def seconds(milliseconds: float) -> str:
    """A duration in seconds: "0.31 s", "12 s"."""
    value = milliseconds / 1000
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def rate(tokens_per_s: float) -> str:
    """Tokens a second, as exact as is worth reading."""
    return f"{tokens_per_s:.1f} tok/s" if tokens_per_s < 100 else f"{tokens_per_s:.0f} tok/s"


def one_line(text: str, width: int) -> str:
    """Text on one line, cut with an ellipsis when it is longer than `width` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: max(0, width - 1)].rstrip() + "…"


def day_group(when: float, now: float) -> str:
    """Heading under which a conversation of that time is listed.

    Args:
        when: Unix time in seconds.
        now: likewise.
    """
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
    """When something was, as short as it can be told apart under the headings of `day_group`: "14:05", "Mon", "3 Nov".

    Args:
        when: Unix time in seconds; what lies ahead of `now`, as with a clock that was set back, is "now".
        now: likewise.
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
    """Like `short_time`, for two that would look the same: with seconds, or with the time of that day."""
    if when > now:
        return "now"
    time = datetime.fromtimestamp(when)
    return f"{time:%H:%M:%S}" if day_group(when, now) in ("Today", "Yesterday") else f"{time.day} {time:%b %H:%M:%S}"


# Control characters are shown, not sent: a model, a file or a title must not be able to steer the terminal. Line ends that
# str.splitlines knows and Markdown does not would make the two count lines differently.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= {0x7F: 0x2421, 0x85: 0x0A, 0x2028: 0x0A, 0x2029: 0x0A}
_VISIBLE |= {code: 0xFFFD for code in range(0x80, 0xA0) if code != 0x85}


def clean(text: str) -> str:
    """Text that is safe to show: control characters become visible signs, all line ends "\\n"."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)
