"""Messages, and the tools that a model may call: frozen values, validated where they are made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from edge.errors import UsageError, kind_of

__all__ = ["Message", "Role", "Tool", "ToolCall", "fence_for", "read_message", "short_id", "to_plain_json"]

Role = Literal["system", "user", "assistant", "tool"]

_TOOL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")
_ID_LENGTH = 9
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


def to_plain_json(what: str, value: object) -> Any:
    """Return a copy of a value in JSON's types only.

    Args:
        what: names it in an error.
        value: dicts with text keys, lists, tuples, text without half characters, finite numbers, bools, None.

    Raises:
        UsageError: it holds something else, or is nested too deeply.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{what} cannot be written as JSON ({error}).", "Use text, finite numbers, lists and dicts.") from None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, as a model wrote it.

    Attributes:
        name: of the tool.
        arguments: JSON values by name; the text of a JSON object is read, "" being none.
        id: names this call in its conversation, so that the result can refer to it.

    Raises:
        UsageError: a value has the wrong type, or the arguments are not a JSON object.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    def __post_init__(self) -> None:
        for what, value in (("name", cast("object", self.name)), ("id", self.id)):
            if not isinstance(value, str):
                raise UsageError(f"The {what} of a tool call is text, not {kind_of(value)}.", "Pass a str.")
            to_plain_json(f"The {what} of a tool call", value)
        if not self.name.strip():
            raise UsageError("A tool call has no name.", "Name the tool that is called.")
        arguments: object = self.arguments
        if isinstance(arguments, str):
            arguments = _read_object(arguments)
        if not isinstance(arguments, Mapping):
            raise UsageError(f"The arguments of a tool call map names to values, not {kind_of(arguments)}.", "Pass a dict.")
        object.__setattr__(self, "arguments", to_plain_json(f"An argument of {self.name}", dict(arguments)))

    def __hash__(self) -> int:
        return hash((self.name, self.id, self.json))

    @property
    def json(self) -> str:
        """The arguments as the text of a JSON object."""
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: up to 128 letters, digits and _ . : -
        description: for the model: what it does, and when to use it.
        parameters: JSON Schema of an object, a property for each argument.
        function: called with the arguments as keywords; None where the caller runs the tool itself.
        needs_approval: somebody has to approve each call before the function is called.

    Raises:
        UsageError: a value has the wrong type, or the parameters are not the schema of an object.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(_NO_PARAMETERS))
    function: Callable[..., object] | None = field(default=None, compare=False)
    needs_approval: bool = field(default=True, compare=False)

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
            hint = "Use up to 128 letters, digits and _ . : -, the first one a letter, digit or _."
            raise UsageError(f"A tool cannot have the name {kind_of(name)}.", hint)
        if not isinstance(self.description, str):
            raise UsageError(f"The description of {self.name} is text, not {kind_of(self.description)}.", "Pass a str.")
        parameters: object = self.parameters
        if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
            hint = 'For example: {"type": "object", "properties": {"city": {"type": "string"}}}'
            raise UsageError(f"The parameters of {self.name} are the JSON Schema of an object.", hint)
        plain = to_plain_json(f"The parameters of {self.name}", {**_NO_PARAMETERS, **parameters})
        if not isinstance(plain["properties"], dict):
            raise UsageError(f"The properties of {self.name} map names to schemas.", "Pass a dict.")
        object.__setattr__(self, "parameters", plain)
        if self.function is not None and not callable(self.function):
            raise UsageError(f"The function of {self.name} cannot be called.", "Pass a function, or None.")

    def __hash__(self) -> int:
        return hash((self.name, self.description, json.dumps(self.parameters, sort_keys=True)))

    def __call__(self, *values: Any, **named: Any) -> Any:
        """Call its function.

        Raises:
            UsageError: it has none.
        """
        if self.function is None:
            raise UsageError(f"{self.name} has no function to call.", "Give it one, or decorate a function with @edge.tool.")
        return self.function(*values, **named)

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as chat templates and the servers' protocols take it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: of the speaker; "developer" is another name for "system".
        content: the text.
        name: the tool's or speaker's name, where the role has one.
        tool_calls: calls that the assistant made after the text.
        tool_call_id: of a tool's result: the call that it answers.
        reasoning: thinking of the assistant before the text, which most models do not read again in later turns.

    Raises:
        UsageError: a value has the wrong type, or the role cannot have it.
    """

    role: Role
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str = ""

    def __post_init__(self) -> None:
        if cast("str", self.role) == "developer":
            object.__setattr__(self, "role", "system")
        if self.role not in get_args(Role):
            raise UsageError(f"There is no role {self.role!r}.", "Roles are system, user, assistant and tool.")
        if not isinstance(self.content, str):
            raise UsageError(f"The content of a message is text, not {kind_of(self.content)}.", "Pass a str.")
        for what, value in (("name", self.name), ("tool_call_id", self.tool_call_id)):
            if not isinstance(value, str | None):
                raise UsageError(f"The {what} of a message is text, not {kind_of(value)}.", "Pass a str or None.")
        reasoning: object = self.reasoning
        calls: object = self.tool_calls
        if not isinstance(reasoning, str):
            raise UsageError(f"The reasoning of a message is text, not {kind_of(reasoning)}.", "Pass a str.")
        if not isinstance(calls, list | tuple) or not all(isinstance(call, ToolCall) for call in calls):
            raise UsageError(f"tool_calls is a list of edge.ToolCall, not {kind_of(calls)}.", "Pass a list of calls.")
        object.__setattr__(self, "tool_calls", tuple(calls))
        if self.role != "assistant" and (self.tool_calls or self.reasoning):
            raise UsageError(f"A message of the role {self.role} calls no tools and has no reasoning.", "The assistant does.")
        if self.role != "tool" and self.tool_call_id is not None:
            raise UsageError(f"A message of the role {self.role} is no result of a call.", 'Give it the role "tool".')


def read_message(value: Mapping[str, object]) -> Message:
    """Return the message that a dict stands for: the fields of `Message` by name, or one of OpenAI's chat format.

    Args:
        value: "role" and "content"; text parts of a content are joined, and None is no text. A tool call is a ToolCall, or a
            dict with "name" and "arguments", which may be in a dict "function".

    Raises:
        UsageError: it has other keys, a value has the wrong type, or a part of the content is no text.
    """
    fields: dict[str, Any] = dict(value)
    unknown = next((key for key in fields if key not in Message.__slots__), None)
    if unknown is not None:
        raise UsageError(f"A message has no key {unknown!r}.", f"Use {', '.join(map(repr, Message.__slots__))}.")
    if "role" not in fields:
        raise UsageError(f"This message has no role: {kind_of(value)}.", 'For example: {"role": "user", "content": "hi"}')
    fields["content"] = _read_content(fields.get("content"))
    if isinstance(calls := fields.get("tool_calls") or (), list | tuple):
        fields["tool_calls"] = tuple(_read_call(call) if isinstance(call, Mapping) else call for call in calls)
    return Message(**{key: part for key, part in fields.items() if part is not None})


def _read_content(content: object) -> object:
    if content is None:
        return ""
    if not isinstance(content, list | tuple):
        return content
    for part in content:
        if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise UsageError(f"A part of this message is no text: {kind_of(part)}.", "Models here read text only.")
    return "".join(part["text"] for part in content)


def _read_call(value: Mapping[str, Any]) -> ToolCall:
    function = value.get("function", value)
    if not isinstance(function, Mapping) or "name" not in function:
        raise UsageError(f"This is no tool call: {kind_of(value)}.", 'For example: {"name": "weather", "arguments": {}}')
    return ToolCall(function["name"], function.get("arguments") or {}, value.get("id") or "")


def fence_for(text: str) -> str:
    """Return a Markdown code fence that the text cannot close."""
    return "`" * (max(map(len, re.findall("`{3,}", text)), default=2) + 1)


def short_id(id: str) -> str:
    """Return an id of nine letters and digits, the only form that Mistral's templates take; the same for the same id."""
    if len(id) == _ID_LENGTH and id.isascii() and id.isalnum():
        return id
    return hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_LENGTH]


def _read_object(text: str) -> object:
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The arguments of a tool call are not JSON: {error}.", 'For example: {"city": "Paris"}') from None
