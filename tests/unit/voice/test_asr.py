"""What recognisers share: Moonshine's vocabulary file, and transcripts that nobody said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ModelFileError
from edge_voice.asr.invented import is_invented
from edge_voice.asr.tokens import Vocabulary

TOKENS = [
    b"<unk>",
    b"<s>",
    b"</s>",
    "▁hello".encode(),
    "▁wor".encode(),
    b"ld",
    b"",
    b"x" * 300,
    "▁é".encode()[:4],
    "é".encode()[1:],
]


def packed(tokens: list[bytes]) -> bytes:
    """Write tokens as Moonshine's files have them."""
    sizes = [bytes([len(one)]) if len(one) < 128 else bytes([128 + len(one) % 128, len(one) // 128]) for one in tokens]
    return b"".join(size + one for size, one in zip(sizes, tokens, strict=True))


def test_tokens_become_words(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.bin"
    file.write_bytes(packed(TOKENS))
    vocabulary = Vocabulary(file)
    assert len(vocabulary) == len(TOKENS)
    assert vocabulary.text([1, 3, 4, 5, 2]) == "hello world"
    assert vocabulary.text([7]) == "x" * 300
    assert vocabulary.text([8, 9]) == "é"  # a character in two tokens
    assert vocabulary.text([999, 0, 6]) == ""


@given(st.binary(max_size=60))
def test_a_damaged_vocabulary_is_an_error_or_a_vocabulary(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("vocabulary") / "tokenizer.bin"
    file.write_bytes(data)
    try:
        vocabulary = Vocabulary(file)
    except ModelFileError:
        return
    assert isinstance(vocabulary.text(range(len(vocabulary))), str)


@pytest.mark.parametrize(
    "text", ["", "...", "♪♪♪", "ten of clubs " * 8, "5 " * 30, "The 2020-2020-2020-2020-2020-2020-2020-2020-2020-2020-2020"]
)
def test_what_nobody_said(text: str) -> None:
    assert is_invented(text)


@pytest.mark.parametrize(
    "text",
    ["Yes.", "No, no, no.", "5", "你好", "one one one two two two", "And Mr. John Dashwood had then leisure to consider."],
)
def test_what_somebody_may_have_said(text: str) -> None:
    assert not is_invented(text)


def test_a_transcript_that_does_not_end_is_invented_if_it_is_long() -> None:
    assert is_invented("The cat sat on the mat and", is_cut=True)
    assert not is_invented("No", is_cut=True)
