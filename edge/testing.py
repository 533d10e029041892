"""A model without a file, for the tests of programs that use edge: it says what it is told, in milliseconds, always the same.

    def test_my_program(monkeypatch):
        model = edge.testing.FakeModel({"Hello": "Hi, how are you?"})
        monkeypatch.setattr(edge, "load", model.load)
        ...                                              # the program, which calls edge.load as ever
        assert model.prompts[-1][-1] == ("user", "Hello")

Everything but the model is edge itself: conversations, events, tools, limits of time, the context window. A character is one
to four tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from edge.assistant import Assistant
from edge.backends.fake import FakeBackend, default_answer
from edge.errors import UsageError
from edge.loading import LoadOptions, make_sources
from edge.messages import Message, ToolCall
from edge.types import Sampling, kind_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edge.loading import Progress

__all__ = ["Answer", "FakeModel"]

Answer: TypeAlias = "str | Message | ToolCall | Exception"
"""What the fake model says: a text, a message with thoughts and tool calls, one tool call, or an error that ends its reply."""

_CONTEXT, _PARALLEL = 16_384, 4
_TEMPLATE = """{#- thinks between <think> and </think> -#}
{%- if tools -%}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}To call one: <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if not (tools and loop.first and message.role == 'system') -%}
<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] -%}
{%- if call.function %}{% set call = call.function %}{% endif -%}
<tool_call>
{"name": {{ call.name | tojson }}, "arguments": {{ call.arguments | tojson }}}
</tool_call>
{%- endfor -%}
<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""


class FakeModel:
    """A model that says what it is told.

    Args:
        answers: by message of the user, or result of a tool, that is answered; or a function of that text. A message that a
            mapping lacks is an error. None repeats what the user said. The same prompt always gets the same answer.
        token_s: time that each step of decoding takes, in seconds: to test what happens while a reply runs.
        chunk_s: time that each chunk of a prompt takes, in seconds.

    Attributes:
        prompts: what it was asked so far, oldest first: (role, text) of each message of a prompt.

    Raises:
        UsageError: the answers are neither a mapping nor a function.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer] | Callable[[str], Answer] | None = None,
        *,
        token_s: float = 0.0,
        chunk_s: float = 0.0,
    ) -> None:
        if answers is not None and not isinstance(answers, Mapping) and not callable(answers):
            raise UsageError(f"answers is a mapping or a function, not {kind_of(answers)}.", 'For example: {"hi": "Hello!"}')
        self.prompts: list[list[tuple[str, str]]] = []
        self._answers, self._token_s, self._chunk_s = answers, token_s, chunk_s

    def load(self, model: str | None = None, **options: Unpack[LoadOptions]) -> Assistant:
        """Return an assistant on the fake model, in place of `edge.load`.

        Args:
            model: is ignored.
            options: as of `edge.load`. Its `store`, `context`, `parallel`, `cache_namespace`, `on_progress`, and the sampling,
                system prompt and window of its `settings` are used; the others concern engines and files, and are ignored.

        Raises:
            UsageError: there is no such option.
            CancelledError: on_progress said False.
        """
        unknown = next((name for name in options if name not in LoadOptions.__annotations__), None)
        if unknown is not None:
            raise UsageError(f"edge.load has no option {unknown!r}.", "See edge.load.")
        settings = options.get("settings")
        return Assistant(
            _Backend(self, options),
            store=options.get("store"),
            sampling=settings.sampling if settings is not None else Sampling(),
            system=(settings.system or None) if settings is not None else None,
            window=settings.window if settings is not None else "drop",
            cache_namespace=options.get("cache_namespace", ""),
            sources=make_sources(settings) if settings is not None else None,
        )

    async def aload(self, model: str | None = None, **options: Unpack[LoadOptions]) -> Assistant:
        """Load as `load` does, in place of `edge.aload`."""
        return await asyncio.to_thread(self.load, model, **options)

    def _say(self, turns: Sequence[tuple[str, str]]) -> str:
        """Return what the model writes after a prompt, and note the prompt."""
        self.prompts.append(list(turns))
        asked = next((text for role, text in reversed(turns) if role in ("user", "tool")), "")
        if self._answers is None:
            return default_answer(asked)
        if isinstance(self._answers, Mapping):
            if asked not in self._answers:
                raise UsageError(f"The fake model has no answer to {asked[:80]!r}.", "Add one, or give it a function.")
            return _write(self._answers[asked])
        return _write(self._answers(asked))


class _Backend(FakeBackend):
    """The engine of a fake model."""

    def __init__(self, model: FakeModel, options: LoadOptions) -> None:
        self._model = model
        super().__init__(
            on_progress=_reporting(options.get("on_progress")),
            delay_s=model._token_s,
            prefill_delay_s=model._chunk_s,
            n_ctx=options.get("context") or _CONTEXT,
            n_seq=options.get("parallel") or _PARALLEL,
            chat_template=_TEMPLATE,
        )

    def _answer(self, turns: Sequence[tuple[str, str]]) -> str:
        return self._model._say(turns)


def _reporting(on_progress: Progress | None) -> Callable[[float], bool]:
    return lambda share: on_progress is None or on_progress("loading", share) is not False


def _write(answer: Answer) -> str:
    """Return an answer as the model would write it; raise it if it is an error."""
    from edge.prompt.tools.hermes import HERMES

    if isinstance(answer, Exception):
        raise answer
    if isinstance(answer, str):
        return answer
    message = Message("assistant", "", tool_calls=(answer,)) if isinstance(answer, ToolCall) else answer
    thought = f"<think>\n{message.reasoning}\n</think>\n\n" if message.reasoning else ""
    return thought + message.content + (HERMES.write(message.tool_calls) if message.tool_calls else "")
