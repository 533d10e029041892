"""How much of a reply was heard, from where the loudspeaker is in its sound."""

from __future__ import annotations

import pytest

from edge_voice.heard import Script

FIRST, SECOND = "Well, ", "that is a long way to go."


def script_of(*pieces: tuple[str, str, float]) -> Script:
    """Return a script of (text, spoken, seconds of sound), all made."""
    script = Script()
    for text, spoken, seconds in pieces:
        script.text += text
        script.append(text, spoken)
        line = script.next()
        script.add_sound(seconds)
        script.finish(line)
    script.is_complete = True
    return script


@pytest.mark.parametrize(
    ("at_s", "heard"),
    [
        (0.0, ""),
        (0.2, ""),
        (0.5, "Well,"),
        (0.6, "Well,"),
        (1.7, "Well, that is a long"),
        (2.49, "Well, that is a long way to"),
        (2.5, "Well, that is a long way to go."),
        (9.0, "Well, that is a long way to go."),
    ],
)
def test_whole_words_count_as_heard(at_s: float, heard: str) -> None:
    assert script_of((FIRST, "well", 0.5), (SECOND, "that is a long way to go", 2.0)).heard(at_s) == heard


def test_what_is_not_said_counts_once_what_is_before_it_was_heard() -> None:
    script = script_of((FIRST, "well", 0.5), ("```\ncode\n```\n", "", 0.0), (SECOND, "that is a long way to go", 2.0))
    assert script.heard(0.4) == ""
    assert script.heard(0.5) == "Well, ```\ncode\n```"


def test_a_sentence_that_is_still_being_made_counts_by_its_likely_length() -> None:
    script = Script()
    script.text = "word " * 28  # about ten seconds
    script.append(script.text, script.text.strip())
    script.next()
    script.add_sound(0.5)
    assert 1 <= len(script.heard(0.5).split()) <= 2


def test_what_is_spoken_now() -> None:
    script = script_of((FIRST, "well", 0.5), (SECOND, "that is a long way to go", 2.0))
    now = script.speaking(1.7)
    assert now is not None and (now.sentence, now.start) == (SECOND, len(FIRST))
    assert (FIRST + SECOND)[: now.heard] == "Well, that is a long"
    assert Script().speaking(0.0) is None
