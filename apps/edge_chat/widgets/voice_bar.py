"""The line that shows what voice does: whenever the microphone is open, it says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from textual.content import Content
from textual.widgets import Static

from edge_chat import format as fmt

__all__ = ["VoiceBar", "VoiceState", "level_bar"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_QUIETEST_DB, _LOUDEST_DB = -60.0, -6.0


@dataclass(frozen=True, slots=True)
class VoiceState:
    """What voice does.

    Attributes:
        phase: "off"; "opening", while models are loaded; "ready".
        is_listening: the microphone is open.
        is_hearing: somebody speaks.
        level_db: loudness of the microphone, in dB below full scale.
        sentence: that is being spoken; "" for none.
        is_hands_free: it listens all the time.
        step: what is done while it is opened; "" for loading.
    """

    phase: Literal["off", "opening", "ready"] = "off"
    is_listening: bool = False
    is_hearing: bool = False
    level_db: float = -90.0
    sentence: str = ""
    is_hands_free: bool = False
    step: str = ""

    def with_changes(self, **changes: Any) -> VoiceState:
        """Return the state with some fields changed."""
        return replace(self, **changes)

    def parts(self, key: Callable[[str], str], *, is_plain: bool) -> list[tuple[str, str]]:
        """Return (text, style) from left to right.

        Args:
            key: name of a command -> its key.
            is_plain: words instead of symbols, and no level, which would be read aloud ten times a second.
        """
        if self.phase == "off":
            return []
        if self.phase == "opening":
            step = fmt.clean(self.step) or "Starting voice" + ("" if is_plain else " …")
            return [(step, "$foreground 70%"), (f"{key('stop')} cancels", "$foreground 70%")]
        parts = []
        if self.is_listening:
            word = "hearing you" if self.is_hearing else "listening"
            level = "" if is_plain else f" {level_bar(self.level_db)}"
            parts.append((f"Microphone on: {word}" if is_plain else f"● {word}{level}", "bold $text-error"))
        if self.sentence:
            said = " ".join(fmt.clean(self.sentence).split())
            said = said.rstrip(".") if is_plain else said
            parts.append((f"Speaking: {said}" if is_plain else f"♪ {said}", "$text-accent"))
        return [*parts, (self._keys(key), "$foreground 70%")]

    def _keys(self, key: Callable[[str], str]) -> str:
        """Return what the keys do now."""
        if self.sentence:
            return f"{key('talk')} interrupts"
        if self.is_listening and self.is_hands_free:
            return "/voice off ends it"
        if self.is_listening:
            return f"{key('talk')} sends, {key('stop')} cancels"
        return f"Voice is on. {key('talk')} to speak"


def level_bar(level_db: float) -> str:
    """Return a loudness as a bar of eight cells."""
    share = min(1.0, max(0.0, (level_db - _QUIETEST_DB) / (_LOUDEST_DB - _QUIETEST_DB)))
    n = round(share * len(_BLOCKS))
    return _BLOCKS[:n] + "·" * (len(_BLOCKS) - n)


class VoiceBar(Static):
    """The line. It takes no room while voice is off."""

    def __init__(self) -> None:
        super().__init__("", id="voice", markup=False)
        self.display = False
        self._parts: list[tuple[str, str]] = []
        self._separator = "  "

    def show(self, state: VoiceState, key: Callable[[str], str], *, is_plain: bool) -> None:
        """Show a state; arguments as of `VoiceState.parts`."""
        self._parts, self._separator = state.parts(key, is_plain=is_plain), ". " if is_plain else "  "
        self.display = bool(self._parts)
        self.refresh()

    def render(self) -> Content:
        """Return the parts; the longest, a sentence or a step, makes room for the others."""
        room = self.content_size.width - sum(len(text) + len(self._separator) for text, _ in self._parts)
        content: list[Any] = []
        longest = max((text for text, _ in self._parts), key=len, default="")
        for text, style in self._parts:
            is_cut = room < 0 and text == longest
            content += [(fmt.one_line(text, max(10, len(text) + room)) if is_cut else text, style), self._separator]
        return Content.assemble(*content[:-1])
