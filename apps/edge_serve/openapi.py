"""GET /openapi.json: the endpoints in OpenAPI 3.1, from the types that bodies are decoded into."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import msgspec

import edge
from edge_serve import limits
from edge_serve.anthropic import described as anthropic
from edge_serve.call import Call
from edge_serve.ollama import described as ollama
from edge_serve.openai import described as openai
from edge_serve.openai.messages import ROLES
from edge_serve.operations import OPERATIONS, Operation

__all__ = ["describe", "document"]

_ERRORS: dict[str, type] = {
    "OpenAI": openai.Error,
    "Anthropic": anthropic.Error,
    "Ollama": ollama.Error,
    "Edge": openai.Error,
}
_PART = re.compile(r"{(\w+)}")
_SHARE = {"minimum": 0, "maximum": 1}
_LENGTH = {"minimum": 1}
_FEW_MESSAGES = {"minItems": 1, "maxItems": limits.MESSAGES}
_CHECKED: dict[str, dict[str, Any]] = {
    "temperature": {"minimum": 0},
    "top_k": {"minimum": 0},
    "top_p": _SHARE,
    "min_p": _SHARE,
    "typical_p": _SHARE,
    "xtc_probability": _SHARE,
    "xtc_threshold": _SHARE,
    "repeat_penalty": {"exclusiveMinimum": 0},
    "repetition_penalty": {"exclusiveMinimum": 0},
    "repeat_last_n": {"minimum": -1},
    "dry_multiplier": {"minimum": 0},
    "dry_base": {"minimum": 1},
    "dry_allowed_length": {"minimum": 0},
    "max_tokens": _LENGTH,
    "max_completion_tokens": _LENGTH,
    "max_output_tokens": _LENGTH,
    "n": {"minimum": 1, "maximum": limits.CHOICES},
    "top_logprobs": {"minimum": 0, "maximum": 20},
    "tools": {"maxItems": limits.TOOLS},
    "stop_sequences": {"maxItems": limits.STOPS},
    "OpenAICompletionRequest.prompt": {"minLength": 1},
    "OpenAIChatRequest.messages": _FEW_MESSAGES,
    "OpenAIChatMessage.role": {"enum": list(ROLES)},
    "OpenAIItem.role": {"enum": list(ROLES)},
    "OpenAIItem.type": {"enum": ["message", "function_call", "function_call_output", "reasoning"]},
    "OpenAIPart.type": {"enum": ["text", "input_text", "output_text", "refusal"]},
    "OpenAIToolParam.type": {"enum": ["function"]},
    "OpenAIResponseTool.type": {"enum": ["function"]},
    "OpenAIResponseFormat.type": {"enum": ["text", "json_object", "json_schema"]},
    "OpenAIFormat.type": {"enum": ["text", "json_object", "json_schema"]},
    "AnthropicCountRequest.messages": _FEW_MESSAGES,
    "AnthropicMessagesRequest.messages": _FEW_MESSAGES,
    "AnthropicInputMessage.role": {"enum": ["user", "assistant", "system"]},
    "AnthropicBlock.type": {"enum": ["text", "thinking", "redacted_thinking", "tool_use", "tool_result", "document"]},
    "AnthropicFormat.type": {"enum": ["json_schema"]},
    "OllamaInputMessage.role": {"enum": ["system", "user", "assistant", "tool"]},
}
"""Field of a request -> what the server checks of it once its type is right."""
_KINDS = {"minItems": ("array",), "maxItems": ("array",), "enum": ("string",), "minLength": ("string",)}


async def describe(call: Call) -> None:
    """Give the description."""
    await call.send(_encoded(bool(call.service.keys)), b"application/json")


@functools.cache
def _encoded(needs_key: bool) -> bytes:
    return msgspec.json.encode(document(needs_key=needs_key))


def document(*, needs_key: bool = False) -> dict[str, Any]:
    """Return the description.

    Args:
        needs_key: the server asks its clients for a key.
    """
    schemas: dict[str, Any] = {}
    references: dict[tuple[str, type], dict[str, Any]] = {}
    for group, error in _ERRORS.items():
        kinds = {operation.reads for operation in _of(group) if operation.reads is not None} | {error}
        kinds |= {operation.answers for operation in _of(group) if isinstance(operation.answers, type)}
        ordered = sorted(kinds, key=lambda kind: kind.__name__)
        template = f"#/components/schemas/{group}{{name}}"
        found, parts = msgspec.json.schema_components(ordered, ref_template=template)
        references |= {(group, kind): reference for kind, reference in zip(ordered, found, strict=True)}
        schemas |= {f"{group}{name}": _plain(f"{group}{name}", part) for name, part in parts.items()}
    paths: dict[str, Any] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, operation, references)
    keys = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edge serve",
            "version": edge.__version__,
            "description": "Local models over the protocols of OpenAI, Anthropic and Ollama.",
        },
        "security": [{"bearer": []}, {"key": []}] if needs_key else [],
        "tags": [{"name": group} for group in _ERRORS],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": keys},
    }


def _of(group: str) -> Iterator[Operation]:
    return (operation for operation in OPERATIONS.values() if operation.group == group)


def _operation(method: str, path: str, operation: Operation, references: dict[tuple[str, type], Any]) -> dict[str, Any]:
    group, answers = operation.group, operation.answers
    error = {"content": {"application/json": {"schema": references[group, _ERRORS[group]]}}}
    responses: dict[str, Any] = {}
    if answers is not None:
        content: dict[str, Any] = (
            {answers: {}} if isinstance(answers, str) else {"application/json": {"schema": references[group, answers]}}
        )
        if operation.streams:
            content[operation.streams] = {}
        responses["200"] = {"description": "The answer.", "content": content}
        if operation.may_be_busy:
            responses["503"] = {"description": "Not at once.", "content": content}
    responses["4XX"] = {"description": "The request is wrong, or comes at a wrong time.", **error}
    responses["5XX"] = {"description": "The server cannot do it.", **error}
    described: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
        "summary": operation.summary,
        "tags": [group],
        "responses": responses,
    }
    if names := _PART.findall(path):
        part = {"in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        described["parameters"] = [{"name": name, **part} for name in names]
    if operation.is_open:
        described["security"] = []
    if operation.reads is not None:
        body = {"schema": references[group, operation.reads], **({"example": operation.example} if operation.example else {})}
        described["requestBody"] = {"required": True, "content": {"application/json": body}}
    return described


def _plain(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a struct with the first line of its docstring, and with what is checked of its fields."""
    about = schema.get("description", "").partition("\n")[0]
    described = {**schema, **({"description": about} if about else {})}
    if "properties" in schema:
        described["properties"] = {field: _checked(name, field, value) for field, value in schema["properties"].items()}
    return described


def _checked(struct: str, name: str, field: dict[str, Any]) -> dict[str, Any]:
    checks = _CHECKED.get(f"{struct}.{name}") or _CHECKED.get(name)
    if checks is None:
        return field

    def add(one: dict[str, Any]) -> dict[str, Any]:
        fits = {key: value for key, value in checks.items() if one.get("type") in _KINDS.get(key, ("integer", "number"))}
        return {**one, **fits}

    choices = [add(choice) for choice in field.get("anyOf", ())]
    return {**field, "anyOf": choices} if choices else add(field)
