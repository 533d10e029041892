"""Sizes and durations as text."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from edge.units import duration_text, one_line, reason, short_name, size_text, type_words


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (98_374_112, "98.4 MB"),
        (999_940_000, "999.9 MB"),
        (999_960_000, "1.0 GB"),
        (25 * 10**9, "25.0 GB"),
        (3 * 10**15, "3000.0 TB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_sizes_are_decimal(n_bytes: int, text: str) -> None:
    assert size_text(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.00 s"), (0.314, "0.31 s"), (9.996, "10 s"), (59.4, "59 s"), (59.6, "1 min"), (300, "5 min"), (5400, "1.5 h")],
)
def test_durations_are_as_exact_as_worth_reading(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_why_something_failed_is_said_without_numbers_and_words_of_python() -> None:
    assert reason(FileNotFoundError(2, "No such file or directory", "/x")) == "No such file or directory"
    assert reason(OSError("odd")) == "odd"
    assert reason(UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid start byte")) == "not UTF-8 text, at byte 1"
    assert reason(ValueError("two")) == "two"


def test_a_name_from_outside_controls_neither_a_terminal_nor_the_direction_of_text() -> None:
    assert one_line(" a\x1b[31m\nb\u2028c\u202etxt.exe\x9b \u2066d ") == "a [31m b c txt.exe d"
    assert one_line("Ünï-模型 №1") == "Ünï-模型 №1"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SmolLM2-135M", "SmolLM2-135M"),
        ("a\nb\u202ec\x1b[1m", "a b c [1m"),
        ("a\udcffb", "a?b"),
        ("x" * 300, "x" * 100),
        ("日" * 300, "日" * 33),
        ("\n\u202e", ""),
    ],
)
def test_a_name_from_outside_becomes_one_for_a_file(text: str, name: str) -> None:
    assert short_name(text) == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"size": "x"}', "size is text, and should be a whole number or null"),
        ('{"size": 0}', "size should be a whole number of at least 1"),
        ('{"part": {"size": []}}', "part.size is a list, and should be a whole number or null"),
        ('{"share": 2}', "share should be a number below 1.0"),
        ('{"names": [1]}', "names[0] is a whole number, and should be text"),
        ('{"names": {}}', "names is a table, and should be a list"),
        ('{"ids": {"a": true}}', "an entry of ids is true or false, and should be a whole number"),
        ('{"kind": "z"}', "kind is 'z', which is not known"),
        ('{"pair": [1]}', "pair should be a list of length 2"),
        ('{"strict": {}}', "needed is missing in strict"),
        ('{"strict": {"needed": 1, "more": 2}}', "more in strict is not known"),
        ("[]", "it is a list, and should be a table"),
    ],
)
def test_a_value_of_a_wrong_type_is_said_in_plain_words(text: str, words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(text, type=_Content)
    assert reason(caught.value) == words


def test_huggingface_speaks_of_types_of_python() -> None:
    said = "Validation error for field 'use_cache': TypeError: Field 'use_cache' expected bool, got dict (value: {})"
    assert type_words(said) == "use_cache is a table, and should be true or false"
    said = "Validation error for field 'x': TypeError: Field 'x' with value 'a b' doesn't match any type in (int, float)"
    assert type_words(said) == "x is of a wrong type"
    assert type_words("Expected nothing of the kind") == "Expected nothing of the kind"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("invalid type: map, expected u32 at line 1 column 16", "is a table, and should be a whole number"),
        ('invalid type: string "a, b", expected a boolean at line 1 column 16', "is text, and should be true or false"),
        (
            "invalid type: floating point `-1.5`, expected struct AddedToken at line 1 column 16",
            "is a number, and should be a table",
        ),
        (
            "invalid type: boolean `false`, expected string or map at line 1 column 16",
            "is true or false, and should be text or a table",
        ),
        ("data did not match any variant of untagged enum MergeType at line 1 column 16", "is of a wrong kind"),
    ],
)
def test_libraries_in_rust_speak_of_their_own_types(said: str, words: str) -> None:
    assert type_words(said) == f"the value at line 1, column 16 {words}"


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    needed: int


class _Content(msgspec.Struct):
    size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    share: Annotated[float, msgspec.Meta(lt=1.0)] = 0.0
    names: list[str] = []
    ids: dict[str, int] = {}
    kind: Literal["x"] = "x"
    pair: tuple[int, int] = (0, 0)
    strict: _Strict | None = None
    part: _Content | None = None
