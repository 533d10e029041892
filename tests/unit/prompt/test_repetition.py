"""What counts as a loop, and what only looks like one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.prompt.repetition import RepetitionDetector

ROOT = Path(__file__).parents[3]
LOOPS = {
    "one word": "ha " * 400,
    "one letter": "a" * 8000,
    "a script without blanks": "我不知道你在说什么。" * 60,
    "a sentence": "The capital of France is Paris. " * 40,
    "a paragraph": ("Ask me and I will do my best to help you with it. " * 3 + "Is there anything else?\n\n") * 10,
    "after a good start": "A good answer begins with what was asked for. " + "And then I went home. " * 60,
    "only the numbers differ": "".join(f"    if n == {n}:\n        return False\n" for n in range(150)),
    "a list of one thing": "".join(f"{n}. Use a good knife.\n" for n in range(150)),
    "a table without cells": "| | | |\n" * 200,
    "dashes": "-" * 1000,
    "line ends": "\n" * 1000,
    "code": "x = x + value\n" * 120,
    "two lines in turns": "Yes.\nNo.\n" * 150,
}
NO_LOOPS = {
    "a matrix of zeros": "[\n" + "    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],\n" * 10 + "]\n",
    "an empty board": ("[" + ", ".join(["'.'"] * 8) + "],\n") * 8,
    "bytes": "unsigned char data[] = {" + ", ".join(["0x00"] * 80) + "};",
    "rules of a table": "| " + " | ".join(["---"] * 30) + " |\n" + "-" * 120 + "\n" + "=" * 120,
    "counting": "".join(f"{n}\n" for n in range(1000)),
    "counting in a line": ", ".join(map(str, range(1000))),
    "a multiplication table": "".join(f"{a} x {b} = {a * b}\n" for a in range(13) for b in range(13)),
    "squares in words": "".join(f"The square of {n} is {n * n}.\n" for n in range(1, 100)),
    "a table of numbers": "".join(f"| 2024-01-{n:02d} | {n * 3} | {n / 7:.2f} |\n" for n in range(500)),
    "a table with few answers": "".join(
        f"| {name} | yes | no | yes |\n" for name in ["alpha", "beta", "gamma", "delta", "eta", "theta"] * 5
    ),
    "laughing": "ha " * 60,
    "a chorus": "La la la, we sing along,\nall day long we sing this song.\n\n" * 4,
    "closing tags": "<ul>\n" + "".join(f"  <li>Item {n}</li>\n" for n in range(60)) + "</ul>\n" + "</div>\n" * 10,
    "placeholders": "<p>Lorem ipsum dolor sit amet</p>\n" * 8,
    "an empty list of tasks": "- [ ] \n" * 30,
}


def loops_at(text: str, step: int = 5, most: int = 5) -> int | None:
    """Return after how many characters a text counts as a loop."""
    detector = RepetitionDetector(most)
    return next((n + step for n in range(0, len(text), step) if detector.feed(text[n : n + step])), None)


@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_loops_are_found_soon(text: str) -> None:
    found = loops_at(text)
    assert found is not None and found < 6000


@pytest.mark.parametrize("text", NO_LOOPS.values(), ids=NO_LOOPS)
def test_lists_tables_and_code_are_no_loops(text: str) -> None:
    assert loops_at(text) is None


def test_what_people_write_is_no_loop() -> None:
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("models/*.toml"), *ROOT.glob("edge/engine/*.py"), *ROOT.glob("edge/*.py")]
    assert len(pages) > 20
    assert [page.name for page in pages if loops_at(page.read_text("utf-8")[:50_000], step=97) is not None] == []


@pytest.mark.parametrize("step", [1, 2, 3, 17, 1000])
def test_it_does_not_matter_how_the_text_is_split(step: int) -> None:
    text = LOOPS["only the numbers differ"]
    assert (loops_at(text, step) or 0) - (loops_at(text, 1) or 0) < step


def test_more_repeats_may_be_allowed() -> None:
    text = LOOPS["a sentence"]
    found = [loops_at(text * 4, most=most) or 0 for most in (2, 5, 10)]
    assert 0 < found[0] < found[1] < found[2]
    assert loops_at(text, most=1) == loops_at(text, most=2)
    assert loops_at(text * 10, most=0) is None


def test_half_of_a_loop_is_suspect() -> None:
    text = LOOPS["a sentence"]
    detector = RepetitionDetector(5)
    states = []
    for n in range(0, len(text), 10):
        is_loop = detector.feed(text[n : n + 10])
        states.append((detector.is_suspect, is_loop))
        if is_loop:
            break
    assert states[0] == (False, False) and (True, False) in states and states[-1] == (True, True)
    detector.feed(" ".join(f"word{chr(97 + n % 26)}{n}x" for n in range(200)))
    assert not detector.is_suspect


def test_a_text_that_goes_on_after_its_repeats_is_no_loop_any_more() -> None:
    detector = RepetitionDetector(5)
    assert any([detector.feed(LOOPS["a sentence"]), False])
    assert not detector.feed(" ".join(f"word{chr(97 + n % 26)}{n}x" for n in range(200)))
