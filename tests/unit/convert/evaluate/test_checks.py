"""What code can check of a reply, each with replies that keep to it and that do not."""

from __future__ import annotations

import msgspec
import pytest

from edge_convert.evaluate.tasks.checks import Check
from edge_convert.evaluate.tasks.instructions import Instruction, compare, is_followed, read_instructions
from edge_convert.evaluate.tasks.languages import language_of

FOLLOWED = {
    "Write one sentence about the sea.": "The sea is 3.5 km deep, Mr. Smith's chart says.",
    "Describe a forest in exactly three sentences.": "It is green. Birds sing! Who would leave?",
    "Is the sun hot? Answer with yes or no only.": "Yes.",
    "Write a JSON list of three fruits. Write only JSON.": '```json\n["apple", "pear", "fig"]\n```',
    'Describe a car without using the word "car".': "It carries people on four wheels.",
}


def met(check: dict[str, object], reply: str) -> bool:
    return msgspec.convert(check, Check).is_met(reply)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"check": "count", "of": "words", "least": 1, "most": 1}, "Apple.", "An apple."),
        ({"check": "count", "of": "words", "least": 3, "most": 4}, "A well-kept, quiet room", "Room"),
        ({"check": "count", "of": "sentences", "least": 2, "most": 2}, "One. Two?", "Just one..."),
        ({"check": "count", "of": "paragraphs", "least": 2, "most": 2}, "One.\n\nTwo.\n", "One.\nTwo."),
        ({"check": "count", "of": "items", "least": 2, "most": 2}, "Here:\n1. a\n2) b", "- a\n- b\n- c"),
        ({"check": "lines", "pattern": r"- ?\S.*", "n": 2}, "- a\n\n- b", "Sure:\n- a\n- b"),
        ({"check": "lines", "pattern": "[A-Z][a-z]+"}, "May\nJune", ""),
        ({"check": "holds", "words": ["gate", "rain"]}, "Rain fell on the gate.", "The gates stood in the rain."),
        ({"check": "holds", "words": ["tea"], "times": 2}, "Tea, tea.", "Tea in a teapot."),
        ({"check": "lacks", "words": ["car"]}, "A cart.", "My Car."),
        ({"check": "lacks", "characters": ","}, "No comma", "One, two"),
        ({"check": "lacks", "characters": ","}, "x", "..."),  # nothing said is nothing followed
        ({"check": "starts", "text": "Dear Sam"}, "\nDear Sam,", "Hello, dear Sam"),
        ({"check": "ends", "text": "Every drop counts."}, "Turn it off. Every drop counts.\n", "Every drop counts. Bye"),
        ({"check": "equals", "texts": ["yes", "no"]}, "No", "No, it is not"),
        ({"check": "letters", "case": "upper"}, "A TRAIN, 9 CARS", "A Train"),
        ({"check": "letters", "case": "lower"}, "quiet.", "12"),
        ({"check": "language", "code": "de"}, "Ein Fluss ist ein Strom, der in das Meer fließt.", "A river is a stream."),
        ({"check": "json", "keys": {"name": "text", "age": "number"}}, '{"age": 36, "name": "Ada"}', '{"name": "Ada"}'),
        ({"check": "json", "keys": {"done": "boolean"}}, '{"done": true}', '{"done": 1}'),
        ({"check": "json", "keys": {"age": "number"}}, '{"age": 3.5}', '{"age": true}'),
        ({"check": "json", "items": "text", "n": 2}, '["a", "b"]', 'Here it is: ["a", "b"]'),
        ({"check": "json", "items": "text", "n": 2}, ' ["a","b"] ', "[" * 100_000),
        ({"check": "code", "function": "f"}, "```python\ndef f(x):\n    return 2 * x\n```", "def f(x): return x"),
        ({"check": "code", "function": "f"}, "So:\n```\ndef f(): pass\n```\nDone", "```\ndef f(:\n```"),
    ],
)
def test_checks(check: dict[str, object], good: str, bad: str) -> None:
    assert met(check, good)
    assert not met(check, bad)
    assert not met(check, "")


def test_the_prompts_are_about_what_they_check() -> None:
    prompts = {one.prompt: one for one in read_instructions()}
    assert len(prompts) == 32
    assert {one.kind for one in prompts.values()} == {"length", "format", "JSON", "language", "words", "case"}
    for prompt, one in prompts.items():
        assert not is_followed(one, prompt), prompt  # repeating the prompt follows nothing
        assert not is_followed(one, ""), prompt
    for prompt, reply in FOLLOWED.items():
        assert is_followed(prompts[prompt], reply), prompt


def test_comparison_with_a_teacher() -> None:
    yes = Instruction("Say yes", (msgspec.convert({"check": "equals", "texts": ["yes"]}, Check),), "format")
    result = compare([yes] * 3, ["yes", "no", "no"], ["yes", "yes", "no"])
    assert result.followed.n_yes == 1
    assert result.teacher and result.teacher.n_yes == 2
    assert result.kept and (result.kept.n_yes, result.kept.n) == (1, 2)
    assert result.by_kind == {"format": result.followed}
    assert compare([yes], ["yes"]).kept is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Menschen schlafen, weil der Körper Ruhe braucht und sich erholt.", "de"),
        ("People sleep because the body needs to rest.", "en"),
        ("Las personas duermen porque el cuerpo necesita descansar.", "es"),
        ("L'hiver est une saison froide, avec de la neige et du vent.", "fr"),
        ("L'inverno è una stagione fredda, con il vento e la neve nel giardino.", "it"),
        ("De winter is een koud seizoen met sneeuw en wind.", "nl"),
        ("O inverno é uma estação fria, com neve e vento no jardim.", "pt"),
        ("12 + 7 = 19", ""),
        ("Zima jest zimna.", ""),
    ],
)
def test_languages(text: str, code: str) -> None:
    assert language_of(text) == code
