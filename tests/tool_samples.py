"""Replies with tool calls as models write them, and what they are.

Samples are what these models wrote, or what llama.cpp's tests (tests/test-chat.cpp, MIT) and the makers' documents show of it.
"""

from __future__ import annotations

import json

from edge.prompt.tools.choose import FORMATS
from edge.types import Tool, ToolCall

TOOLS = [
    Tool(
        "weather",
        "Tell the weather",
        {
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "code": {"type": "string"},
                "tags": {"type": "array", "items": {}},
                "maybe": {"type": ["number", "null"]},
                "sure": {"type": "boolean"},
                "one_of": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            }
        },
    ),
    Tool("python", "Run Python", {"properties": {"code": {"type": "string"}}}),
    Tool("now"),
]
BY_NAME = {format.name: format for format in FORMATS}


def call(name="weather", **arguments):
    return ToolCall(name, arguments)


PARIS = call(city="Paris")
TRICKY = call(city='Pa"r}is</tool_call>', tags=["]", "}", "[TOOL_CALLS]"])
TRICKY_JSON = json.dumps(TRICKY.arguments)

SAMPLES: dict[str, list[tuple[str, list]]] = {
    "hermes": [
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>', [PARIS]),
        (
            'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
            ["Let me look.", PARIS, call("now")],
        ),
        (f'<tool_call>{{"name": "weather", "arguments": {TRICKY_JSON}}}</tool_call>', [TRICKY]),
        ('<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>', [PARIS]),
        ('<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}', [PARIS]),  # ends without the tag
        ('<tool_call>\n{"name": "now"}\n</tool_call>\nDone.', [call("now"), "\nDone."]),
        ('<tool_call>[{"name": "now"}, {"name": "weather", "arguments": {"city": "Paris"}}]</tool_call>', [call("now"), PARIS]),
        ('<tool_call>{"name": "weather", "arguments": {"city": "a\nb"}}</tool_call>', [call(city="a\nb")]),
        ("1 < 2, <tool_ and <b>", ["1 < 2, <tool_ and <b>"]),
        ("  Just text. \n", ["  Just text. \n"]),
    ],
    "qwen-xml": [
        (
            "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
            "</function>\n</tool_call>",
            [call(city="Paris", days=2)],
        ),
        (
            "I run it.\n\n<tool_call>\n<function=python>\n<parameter=code>\n"
            "if a < b:\n    print('<parameter=x>', \"</tool_call>\")\n"
            "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
            ["I run it.", call("python", code="if a < b:\n    print('<parameter=x>', \"</tool_call>\")"), call("now")],
        ),
        (
            "<tool_call><function=weather><parameter=city>12</parameter><parameter=maybe>null</parameter><parameter=sure>True"
            '</parameter><parameter=tags>["a", 1]</parameter><parameter=one_of>null</parameter></function></tool_call>',
            [call(city="12", maybe=None, sure=True, tags=["a", 1], one_of=None)],
        ),
        (
            "<tool_call><function=weather><parameter=city>null</parameter><parameter=unknown>3</parameter>"
            "<parameter=days>many</parameter></function></tool_call>",
            [call(city="null", unknown=3, days="many")],
        ),
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>', [PARIS]),
    ],
    "llama3": [
        ('{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
        ('<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
        ('{"type": "function", "name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
        ('{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}', [PARIS]),
        ('{"name": "weather", "parameters": {"city": "Paris"}}; {"name": "now", "parameters": {}}', [PARIS, call("now")]),
        ("<|python_tag|>python.call(code=\"print('hi')\")", [call("python", code="print('hi')")]),
        ('{"answer": 42}', ['{"answer": 42}']),
        ('{"name": "Ada", "parameters": {"age": 36}}', ['{"name": "Ada", "parameters": {"age": 36}}']),
        (
            'Here: {"name": "weather", "parameters": {"city": "Paris"}}',
            ['Here: {"name": "weather", "parameters": {"city": "Paris"}}'],
        ),
        ("{not json", ["{not json"]),
    ],
    "mistral": [
        ('[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}]', [PARIS]),
        (
            '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefgh1"}, '
            '{"name": "now", "arguments": {}}]',
            [ToolCall("weather", {"city": "Paris"}, "abcdefgh1"), call("now")],
        ),
        ('Hm.[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now[ARGS]{}', ["Hm.", PARIS, call("now")]),
        ('[TOOL_CALLS]weather[CALL_ID]abcdefgh1[ARGS]{"city": "Paris"}', [ToolCall("weather", {"city": "Paris"}, "abcdefgh1")]),
        (f"[TOOL_CALLS]weather[ARGS]{TRICKY_JSON}", [TRICKY]),
        ('[TOOL_CALLS]weather{"city": "Paris"}', [PARIS]),
        ('[TOOL_CALLS]weather[ARGS]{"city":"Paris","days":2}', [call(city="Paris", days=2)]),
    ],
    "lfm2": [
        ('<|tool_call_start|>[weather(city="Paris")]<|tool_call_end|>', [PARIS]),
        (
            "<|tool_call_start|>[weather(city='Paris', days=-2, sure=True, maybe=null), now()]<|tool_call_end|>I will see.",
            [call(city="Paris", days=-2, sure=True, maybe=None), call("now"), "I will see."],
        ),
        (
            '<|tool_call_start|>[weather(city="First\\nSecond\\t\\"hi\\"", sure=true)]<|tool_call_end|>',
            [call(city='First\nSecond\t"hi"', sure=True)],
        ),
        ("<|tool_call_start|>[python(code='a')]<|tool_call_end|>Done.", [call("python", code="a"), "Done."]),
        (
            "<|tool_call_start|>[weather(city='it\\'s <|tool_call_end|>', tags=[1, {'a': (2.5,)}])]<|tool_call_end|>",
            [call(city="it's <|tool_call_end|>", tags=[1, {"a": [2.5]}])],
        ),
        ('<|tool_call_start|>[{"name": "weather", "arguments": {"city": "Paris"}}]<|tool_call_end|>', [PARIS]),
        ('<|tool_call_start|>[weather(city="Paris")]', [PARIS]),
    ],
    "functiongemma": [
        ("<start_function_call>call:weather{city:<escape>Paris<escape>}<end_function_call>", [PARIS]),
        (
            "<start_function_call>call:weather{city:<escape>a, {b}: c<escape>,days:2,sure:true,maybe:null,"
            "tags:[<escape>x<escape>,{k:1.5}]}<end_function_call><start_function_call>call:now{}<end_function_call>",
            [call(city="a, {b}: c", days=2, sure=True, maybe=None, tags=["x", {"k": 1.5}]), call("now")],
        ),
    ],
    "gemma4": [
        ('<|tool_call>call:weather{city:<|"|>Paris<|"|>}<tool_call|>', [PARIS]),
        (
            '<|tool_call>call:weather{city:<|"|>say "hi" } <tool_call|><|"|>,tags:[{a:{b:[]}}]}<tool_call|>'
            "<|tool_call>call:now{}<tool_call|>",
            [call(city='say "hi" } <tool_call|>', tags=[{"a": {"b": []}}]), call("now")],
        ),
        ('<|tool_call>call:weather{city:"Paris"}<tool_call|>', [PARIS]),
    ],
    "phi4-mini": [
        ('functools[{"name": "weather", "arguments": {"city": "Paris"}}]', [PARIS]),
        (
            f'functools[{{"name": "weather", "arguments": {TRICKY_JSON}}}, {{"name": "now", "arguments": {{}}}}]',
            [TRICKY, call("now")],
        ),
        ('<|tool_call|>[{"name": "now", "arguments": {}}]<|/tool_call|>', [call("now")]),
        (' functools[{"name": "weather", "arguments": {"city": "Paris"}}]', [PARIS]),
        ("Python's functools[...] is", ["Python's functools[...] is"]),
    ],
    "granite3": [
        ('<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]', [PARIS]),
        ('<|tool_call|>[{"arguments": {"city": "Paris"}, "name": "weather"}, {"name": "now"}]', [PARIS, call("now")]),
        (f'<tool_call>[{{"name": "weather", "arguments": {TRICKY_JSON}}}]', [TRICKY]),
    ],
}
