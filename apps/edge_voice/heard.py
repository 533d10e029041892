"""A reply as it is spoken: which part of the text is which part of the sound, so that what was heard is known."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_voice.events import Speaking

__all__ = ["Line", "Script"]

_CHARS_PER_S = 14.0  # of speech, where a sentence is still being made


@dataclass(slots=True)
class Line:
    """A piece of the reply.

    Attributes:
        text: as the reply has it.
        start: its place there, in characters.
        spoken: its words; "" for nothing to say.
        from_s: where its sound begins in all sound of the reply, in seconds; None before it is made.
        to_s: where it ends, as far as it is made.
        is_made: all of its sound is queued.
    """

    text: str
    start: int
    spoken: str
    from_s: float | None = None
    to_s: float = 0.0
    is_made: bool = False

    def share(self, at_s: float) -> float:
        """Return how much of it was heard at a position, 0 to 1."""
        if self.from_s is None or at_s < self.from_s:
            return 0.0
        length_s = self.to_s - self.from_s
        if not self.is_made:
            length_s = max(length_s, len(self.spoken) / _CHARS_PER_S)
        return 1.0 if length_s <= 0 else min(1.0, (at_s - self.from_s) / length_s)


class Script:
    """The pieces of one reply, spoken and not. The mouth's lock guards it.

    Attributes:
        text: of the reply so far.
        queued_s: sound that was queued so far, in seconds.
        is_complete: no more text comes.
        is_mute: nothing (more) of it is spoken.
    """

    def __init__(self) -> None:
        self.text = ""
        self.queued_s = 0.0
        self.is_complete = self.is_mute = False
        self._lines: list[Line] = []
        self._n_said = 0
        self._n_made = 0

    def append(self, text: str, spoken: str) -> None:
        """Add the next piece."""
        start = self._lines[-1].start + len(self._lines[-1].text) if self._lines else 0
        self._lines.append(Line(text, start, spoken))

    @property
    def has_next(self) -> bool:
        """Return whether there is a piece whose sound nobody has begun to make."""
        return self._n_said < len(self._lines)

    def next(self) -> Line:
        """Return that piece, whose sound begins now."""
        line = self._lines[self._n_said]
        self._n_said += 1
        line.from_s = line.to_s = self.queued_s
        return line

    def add_sound(self, seconds: float) -> None:
        """Note that sound of the newest piece was queued."""
        self.queued_s += seconds
        self._lines[self._n_said - 1].to_s = self.queued_s

    def finish(self, line: Line) -> None:
        """Note that all sound of a piece is queued."""
        line.is_made = True
        self._n_made += 1

    @property
    def is_spoken(self) -> bool:
        """Return whether all sound of the reply is queued."""
        return self.is_complete and self._n_made == len(self._lines)

    def heard(self, at_s: float) -> str:
        """Return the beginning of the text that was heard at a position in the sound, in whole words."""
        return self.text[: self._heard_end(at_s)].rstrip()

    def speaking(self, at_s: float) -> Speaking | None:
        """Return what is heard at a position; None before the first sound."""
        line = next(
            (one for one in reversed(self._lines) if one.from_s is not None and one.from_s <= at_s and one.spoken), None
        )
        if line is None or line.from_s == line.to_s:
            return None
        return Speaking(line.text.strip(), line.start, self._heard_end(at_s))

    def _heard_end(self, at_s: float) -> int:
        end = 0
        for line in self._lines:
            if line.from_s is None:
                break
            share = line.share(at_s)
            if not line.spoken:  # nothing to hear: it counts once what is before it was heard
                share = 1.0 if line.is_made and end >= line.start else 0.0
            if share >= 1.0:
                end = line.start + len(line.text)
                continue
            reached = share * len(line.text)
            words = [match.end() for match in re.finditer(r"\S+", line.text) if match.end() <= reached]
            return line.start + words[-1] if words else end
        return end
