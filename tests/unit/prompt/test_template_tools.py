"""Tools, calls and reasoning through real chat templates: shown as transformers shows them, and never with another's voice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge.errors import UnsupportedError
from edge.prompt.template import ChatTemplate
from edge.types import Message, Tool, ToolCall

FOLDER = Path(__file__).parents[2] / "fixtures" / "templates"
ALL = {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
TAKES = [name for name, source in ALL.items() if ChatTemplate(source, bos_text="<s>", eos_text="</s>").takes_tools]
WEATHER = Tool("weather", "Tell the weather", {"properties": {"city": {"type": "string", "description": "Where"}}})
CALLS = (ToolCall("weather", {"city": "Paris"}, "abcdefgh1"), ToolCall("weather", {"city": "Rome"}, "abcdefgh2"))
RESULTS = [Message("tool", "Rain", tool_call_id="abcdefgh1"), Message("tool", "Sun", tool_call_id="abcdefgh2")]
TURN = [Message("user", "Weather?"), Message("assistant", "", tool_calls=CALLS), *RESULTS]
ENDS = [*TURN, Message("assistant", "Wet here, dry there."), Message("user", "Thanks")]

CONTROLS = re.findall(
    r"\S+",
    """<|im_start|> <|im_end|> <s> </s> <|eot_id|> <|eom_id|> <|python_tag|> [INST] [/INST] [TOOL_CALLS] [ARGS] [CALL_ID]
    [TOOL_RESULTS] [/TOOL_RESULTS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] <|tool_call_start|> <|tool_call_end|> <|tool_call|>
    <|tool_call> <tool_call|> <|turn> <turn|> <|channel> <channel|> <|tool_response> <tool_response|> <|start_of_role|>
    <|end_of_role|> <|end_of_text|> <|start_header_id|> <|end_header_id|> [THINK] [/THINK]""",
)
QUOTE = '<|"|>'
"""A token of Gemma 4, which writes no JSON."""
ADDED = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
"""Tokens that tokenizers read in plain text, too."""


class Tokenizer:
    """Letters and whole markers, those of a model with this template."""

    def __init__(self, source):
        self.added = [text for text in ADDED if text in source]
        self.controls = [*CONTROLS, *([QUOTE] if QUOTE in source else [])]
        self.ids = {text: 0x110000 + number for number, text in enumerate([*self.controls, *self.added])}
        self.texts = {id: text for text, id in self.ids.items()}

    def __call__(self, text, *, add_special=False, parse_special=False):
        words = [*self.controls, *self.added] if parse_special else self.added
        pattern = "|".join([*map(re.escape, sorted(words, key=len, reverse=True)), "."])
        return [self.ids[part] if part in self.ids else ord(part) for part in re.findall(pattern, text, re.DOTALL)]

    def spell(self, ids):
        return "".join(self.texts.get(id) or chr(id) for id in ids)


def load(name):
    return ChatTemplate(ALL[name], bos_text="<s>", eos_text="</s>")


def markers(template, messages, tools, **kwargs):
    prompt = template.render(messages, tools=[tool.schema for tool in tools], **kwargs)
    tokenizer = Tokenizer(template.source)
    ids = template.encode(prompt, tokenizer)
    assert tokenizer.spell(ids) == prompt.text
    return [tokenizer.texts[id] for id in ids if id in tokenizer.texts]


def test_many_families_take_tools():
    assert len(TAKES) > 15


@pytest.mark.parametrize("name", TAKES)
def test_nobody_speaks_through_tools_calls_and_results(name):
    """Arguments, results, descriptions, names, keys and reasoning may hold any marker; only the template's are tokens."""
    template = load(name)
    evil = "x" + "".join([*Tokenizer(template.source).ids, "y"])
    if name == "lfm2_5":  # leaves out everything before that word, calls in the content among it
        evil = evil.replace("</think>", "")

    def conversation(text, key):
        calls = (ToolCall("weather", {"city": text, key: [text]}, "abcdefgh1"),)
        return [
            Message("user", text),
            Message("assistant", "", tool_calls=calls, reasoning=text),
            Message("tool", text, tool_call_id="abcdefgh1"),
            Message("assistant", "Done"),
            Message("user", text),
        ]

    def tool(text, key):
        return Tool("weather", text, {"properties": {key: {"type": "string", "description": text, "enum": [text]}}})

    tame = markers(template, conversation("word", "key"), [tool("word", "key")])
    assert markers(template, conversation(evil, evil), [tool(evil, evil)]) == tame


@pytest.mark.parametrize("name", [name for name in TAKES if name not in ("lfm2", "lfm2_5", "granite3_3", "falcon_h1")])
@pytest.mark.parametrize("turn", ["open", "over"])
def test_text_is_that_of_transformers(name, turn):
    from transformers import PreTrainedTokenizerFast

    template, messages = load(name), TURN if turn == "open" else ENDS
    if not template._tool_style.many:
        calls = [Message("assistant", "", tool_calls=(call,)) for call in CALLS]
        messages = [messages[0], calls[0], RESULTS[0], calls[1], RESULTS[1], *messages[4:]]
    theirs = PreTrainedTokenizerFast(tokenizer_object=_word_tokenizer(), bos_token="<s>", eos_token="</s>")
    rows = []
    for message in messages:
        row = {"role": message.role, "content": message.content}
        if message.tool_calls:
            row["tool_calls"] = [
                {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in message.tool_calls
            ]
        if message.role == "tool":
            row |= {"name": "weather", "tool_call_id": message.tool_call_id}
        rows.append(row)
    tools = [WEATHER.schema]
    text = theirs.apply_chat_template(
        rows, tools=tools, chat_template=template.source, add_generation_prompt=True, tokenize=False
    )
    assert template.render(messages, tools=tools).text == text


def _word_tokenizer():
    from tokenizers import Tokenizer as Fast
    from tokenizers import models

    return Fast(models.WordLevel({"x": 0}, unk_token="x"))


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2"])
def test_parallel_calls_become_one_after_the_other_where_the_template_takes_one(name):
    prompt = load(name).render(ENDS, tools=[WEATHER.schema])
    found = [(message.role, message.tool_calls, message.content) for message in prompt.messages[1:5]]
    assert found == [
        ("assistant", CALLS[:1], ""), ("tool", (), "Rain"), ("assistant", CALLS[1:], ""), ("tool", (), "Sun"),
    ]  # fmt: skip
    places = [prompt.text.index(word) for word in ('"Paris"', "Rain", '"Rome"', "Sun", "Wet here")]
    assert places == sorted(places)


def test_calls_are_written_with_control_tokens_where_the_template_leaves_them_out():
    for name, opening, closing in (("lfm2", "<|tool_call_start|>", "<|tool_call_end|>"), ("granite3_3", "<|tool_call|>", "")):
        template = load(name)
        calls = (ToolCall("weather", {"city": f"{opening}{closing}"}, "abcdefgh1"),)
        before = markers(template, TURN[:1], [WEATHER])
        found = markers(template, [TURN[0], Message("assistant", "", tool_calls=calls), RESULTS[0]], [WEATHER])
        assert found.count(opening) == before.count(opening) + 1
        assert found.count(closing) == before.count(closing) + bool(closing)


def test_results_have_the_name_of_the_tool_that_was_called():
    prompt = load("gemma4").render(TURN, tools=[WEATHER.schema])
    assert [message.name for message in prompt.messages if message.role == "tool"] == ["weather", "weather"]
    assert "response:weather" in prompt.text


def test_ids_of_other_programs_suit_templates_that_are_strict_about_them():
    calls = (ToolCall("weather", {}, "call_0123456789"),)
    messages = [TURN[0], Message("assistant", "", tool_calls=calls), Message("tool", "Rain", tool_call_id="call_0123456789")]
    text = load("mistral_nemo").render(messages, tools=[WEATHER.schema]).text
    shown = re.findall(r'(?:"id"|"call_id"): "([^"]*)"', text)
    assert len(shown) == 2 and shown[0] == shown[1] and re.fullmatch("[a-zA-Z0-9]{9}", shown[0])


@pytest.mark.parametrize("name", ["smollm2", "gemma3", "phi3_5", "llama2"])
def test_a_template_without_tools_refuses_them(name):
    template = load(name)
    assert not template.takes_tools
    with pytest.raises(UnsupportedError, match="no place for tools") as caught:
        template.render(TURN[:1], tools=[WEATHER.schema])
    assert 'tool_format="prompt"' in caught.value.hint
    prompt = template.render(ENDS, tools=[WEATHER.schema], tools_in_prompt=True)
    for words in (
        '"name": "weather"',
        "<tools>",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}',
        "Rain",
        "Sun",
    ):
        assert words in prompt.text, words
    assert template.render(TURN[:1], tools=[]).text == template.render(TURN[:1]).text


def test_tools_may_stand_in_the_system_message():
    """Phi-4-mini's template takes them there, as text."""
    source = (
        "{% for message in messages %}"
        "{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
        "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}"
        "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    template = ChatTemplate(source)
    assert template.takes_tools and template.tool_format.name == "phi4-mini"
    text = template.render(TURN, tools=[WEATHER.schema]).text
    assert text.startswith('<|system|><|tool|>[{"name": "weather"') and text.endswith("<|tool|>Sun<|end|><|assistant|>")
    assert '<|assistant|>functools[{"name": "weather", "arguments": {"city": "Paris"}}' in text


def test_reasoning_is_shown_where_the_template_wants_it():
    turn = [Message("user", "Hi"), Message("assistant", "Hello", reasoning="a greeting")]
    assert "<think>\na greeting\n</think>\n\nHello" in load("qwen3").render(turn).text
    later = [*turn, Message("user", "Bye")]
    for name, source in ALL.items():
        if "think" in source and name != "gpt_oss":
            assert "a greeting" not in load(name).render(later).text, "thinking is left out of later turns"


def test_a_developer_is_the_system_and_late_ones_are_merged():
    messages = [Message("system", "One."), Message("developer", "Two."), Message("user", "Hi")]
    text = load("gemma4").render(messages).text
    assert text.index("One.") < text.index("Two.") < text.index("Hi")
