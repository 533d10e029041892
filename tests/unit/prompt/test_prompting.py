"""Prompts of one model: what is remembered, what is recalled from a file, and what is told once."""

from __future__ import annotations

import dataclasses

import pytest

from edge.backends.fake import CHATML, FakeBackend, FakeTokenizer
from edge.errors import TemplateError
from edge.prompt.prompting import Prompting
from edge.types import Message

IM_START, IM_END = 256, 257
HELLO = [Message("user", "hi"), Message("assistant", "Hello"), Message("user", "and?")]
OTHER = [*b"Hel", *b"lo"]


class Counting(FakeTokenizer):
    """Notes the texts it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def _encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        self.texts.append(text)
        return super()._encode(text, add_special, parse_special)


class Pairs(FakeTokenizer):
    """Has a second way to write "lo": one token."""

    LO = 259

    def __init__(self) -> None:
        super().__init__()
        self.n_vocab += 1

    def _look_up(self, token: int):  # type: ignore[no-untyped-def]
        return super()._look_up(token) if token != self.LO else super()._look_up(0)._replace(plain=b"lo", special=b"lo")


def make(tokenizer: FakeTokenizer | None = None, template: str | None = None, system: str | None = None) -> Prompting:
    info = FakeBackend().info
    return Prompting(
        dataclasses.replace(info, chat_template=template or info.chat_template), tokenizer or FakeTokenizer(), system
    )


def ids(text: str) -> list[int]:
    return FakeTokenizer().tokenize(text, parse_special=True)


# -- tokens of a prompt


def test_the_template_makes_special_tokens_and_contents_do_not() -> None:
    prompt = make().encode([Message("user", "a<|im_end|>b")])
    assert prompt == [*ids("<|im_start|>user\na"), *b"<|im_end|>", *ids("b<|im_end|>\n<|im_start|>assistant\n")]


def test_a_text_is_tokenised_once() -> None:
    tokenizer = Counting()
    prompting = make(tokenizer)
    first = prompting.encode(HELLO)
    tokenizer.texts.clear()
    assert prompting.encode(HELLO) == first
    longer = [*HELLO, Message("assistant", "Yes"), Message("user", "new words")]
    assert prompting.encode(longer)[: len(first)] == first
    assert not any("Hello" in text for text in tokenizer.texts)
    assert any("new words" in text for text in tokenizer.texts)


def test_texts_beyond_the_memo_are_tokenised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.prompt.prompting._MEMO_TOKENS", 100)
    tokenizer = Counting()
    prompting = make(tokenizer)
    for text in ("a" * 40, "b" * 40, "a" * 40, "c" * 40, "a" * 40, "b" * 40):
        assert prompting.tokenize(text) == [*text.encode()]
    assert [text[0] for text in tokenizer.texts] == ["a", "b", "c", "b"], "the least recently used goes first"
    assert prompting.tokenize("d" * 200) == [*b"d" * 200], "larger than the memo"


def test_the_kind_of_tokenising_is_part_of_what_is_remembered() -> None:
    prompting = make()
    assert prompting.tokenize("<|im_end|>") == [*b"<|im_end|>"]
    assert prompting.tokenize("<|im_end|>", parse_special=True) == [IM_END]


def test_what_was_changed_for_the_template_is_told() -> None:
    no_system = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    notices: list[str] = []
    prompting = make(template=no_system)
    prompting.encode([Message("system", "Be brief"), Message("user", "hi")], notices.append)
    prompting.encode([Message("user", "hi")], notices.append)
    assert len(notices) == 1
    assert "no role for a system prompt" in notices[0]


@pytest.mark.parametrize(
    ("default", "own", "expected"),
    [(None, "", []), ("", "", [""]), ("Be kind", "", ["Be kind"]), ("Be kind", "Be brief", ["Be brief"]), (None, "x", ["x"])],
)
def test_the_system_prompt_of_a_conversation(default: str | None, own: str, expected: list[str]) -> None:
    assert make(system=default).system_message(own) == [Message("system", text) for text in expected]


def test_a_message_is_counted_rather_too_high_than_too_low() -> None:
    prompting = make()
    for message in (Message("user", "a question"), Message("assistant", "an answer"), Message("user", "")):
        before = [Message("user", "x")] if message.role == "assistant" else [Message("user", "x"), Message("assistant", "y")]
        n_added = len(prompting.encode([*before, message])) - len(prompting.encode(before))
        assert n_added <= prompting.count_one(message) <= n_added + 4


# -- replies


def test_a_generated_reply_keeps_its_tokens_in_the_next_prompt() -> None:
    prompting = make(Pairs())
    prompting.remember_reply("Hello", [*b"Hel", Pairs.LO])
    assert Pairs.LO in prompting.encode(HELLO)
    assert Pairs.LO not in prompting.encode([Message("user", "Hello")]), "only the assistant's words were generated"


def test_replies_of_an_earlier_process_are_recalled() -> None:
    prompting = make(Pairs())
    prompting.recall_replies([("Hello", [*b"Hel", Pairs.LO]), ("é", [*"é".encode()])])
    assert Pairs.LO in prompting.encode(HELLO)


def test_what_is_known_of_a_reply_is_not_replaced_by_a_file() -> None:
    prompting = make(Pairs())
    prompting.remember_reply("Hello", OTHER)
    prompting.recall_replies([("Hello", [*b"Hel", Pairs.LO])])
    assert Pairs.LO not in prompting.encode(HELLO)


@pytest.mark.parametrize(
    "stored",
    [
        None,
        [],
        "Hello",
        {"0": 72},
        [*b"Hel", "lo"],
        [*b"Hel", 1.5],
        [*b"Hel", -1],
        [*b"Hel", 260],
        [*b"Hel", Pairs.LO, *b"!"],
        [*b"Hel"],
        [*b"Help"],
        [*b"Hello", 0xC3],
        [*b"Hel", IM_END, *b"lo", IM_START],
    ],
)
def test_what_does_not_make_up_the_text_is_not_recalled(stored: object) -> None:
    prompting = make(Pairs())
    expected = prompting.encode(HELLO)
    prompting.recall_replies([("Hello", stored)])
    assert prompting.encode(HELLO) == expected


def test_recalled_tokens_cannot_smuggle_special_tokens_into_a_prompt() -> None:
    """Special tokens have no bytes as plain text, so a check of the text alone lets them through."""
    prompting = make()
    honest = prompting.encode(HELLO)
    smuggled = [*b"Hel", IM_END, *b"lo", IM_START]
    prompting.recall_replies([("Hello", smuggled)])
    assert prompting.encode(HELLO) == honest
    assert honest.count(IM_START) == 4


# -- what prompts share


def test_conversations_with_one_system_prompt_share_its_prefix() -> None:
    prompting = make()
    system = Message("system", "Be brief")
    one, two = [system, Message("user", "one")], [system, Message("user", "two")]
    end = prompting.shared_end(one, prompting.encode(one))
    assert end == len(ids("<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\n"))
    assert prompting.encode(one)[:end] == prompting.encode(two)[:end]
    assert prompting.shared_end(one[1:], prompting.encode(one[1:])) == 0
    assert prompting.shared_end([], []) == 0


def test_a_template_that_refuses_an_empty_question_shares_nothing() -> None:
    strict = "{{ messages[-1].content }}{% if not messages[-1].content[-1:].strip() %}{{ raise_exception('empty') }}{% endif %}"
    prompting = make(template=strict)
    messages = [Message("system", "Be brief"), Message("user", "one")]
    assert prompting.shared_end(messages, prompting.encode(messages)) == 0
    with pytest.raises(TemplateError, match="empty"):
        prompting.encode([Message("user", "")])


def test_news_is_what_was_not_said_last() -> None:
    prompting = make()
    said = [prompting.is_news(about, what) for about, what in [("a", 1), ("a", 1), ("b", 1), ("a", 2), ("a", 1)]]
    assert said == [True, False, True, True, True]


def test_a_generated_reply_with_special_tokens_is_not_reused_either() -> None:
    """Or the prompts of a process that runs on would differ from those of one that starts again and recalls its replies."""
    prompting = make()
    honest = prompting.encode(HELLO)
    prompting.remember_reply("Hello", [*b"Hel", IM_END, *b"lo"])
    assert prompting.encode(HELLO) == honest


OWN = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Fake<|im_end|>\n{% endif %}" + CHATML


@pytest.mark.parametrize(("template", "messages"), [(CHATML, []), (OWN, [Message("system", "")])])
def test_no_system_prompt_at_all(template: str, messages: list[Message]) -> None:
    backend = FakeBackend()
    info = dataclasses.replace(backend.info, chat_template=template)
    try:
        for default in ("Be brief", None, "none"):
            prompting = Prompting(info, backend.tokenizer, default)
            assert prompting.system_message("none") == prompting.system_message(" None\n") == messages
        assert prompting.system_message("") == messages
        assert prompting.system_message("None of your business") == [Message("system", "None of your business")]
    finally:
        backend.close()


class Unspellable(FakeTokenizer):
    """A vocabulary without an unknown token, as llama.cpp gives it: -1 for what it cannot spell."""

    def _encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        return [token if token < 128 or token > 255 else -1 for token in super()._encode(text, add_special, parse_special)]


def test_text_that_a_vocabulary_cannot_spell_is_left_out() -> None:
    prompting = make(Unspellable())
    assert prompting.tokenize("né") == [*b"n"]
    assert prompting.encode([Message("user", "né")]) == prompting.encode([Message("user", "n")])
