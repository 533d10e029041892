"""What is asked of a turn: `Assistant.generate`, `Conversation.send` and the server all make one of these.

A new option of all of them is a key of `RequestOptions`, a field of `Request`, and a line of `edge.arguments.asked`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge.prompt.options import NO_OPTIONS, PromptOptions
from edge.tool_runner import ToolLimits
from edge.types import Message, Sampling, SamplingOptions

if TYPE_CHECKING:
    from edge.adapters import Lora, Mix
    from edge.constraint import Constraint
    from edge.engine.generation import SharedPrompt
    from edge.grounding.choose import Docs, Grounding
    from edge.messages import Tool
    from edge.names import CacheHint, Priority
    from edge.prompt.options import ToolFormat
    from edge.structured.shapes import Shape
    from edge.tiers.base import Consent
    from edge.tool_runner import Approve

__all__ = ["Request", "RequestOptions"]


class RequestOptions(SamplingOptions, total=False):
    """Keywords of `send`, `generate` and the like: the fields of `Sampling`, and these.

    Attributes:
        timeout_s: stop the reply after this many seconds and keep its text; None sets no limit.
        cache: where the KV cache of this turn stays: "off" keeps nothing after the reply, "memory" nothing on the disk, "disk"
            also stores it there, "keep" pins it there. None is `Conversation.cache`, else what earlier messages of the
            conversation inherit to it ("off" and "memory", since its prompt contains them), else "disk" where the assistant
            has one. What is cached already is reused in any case.
        priority: "background" for a reply that nobody waits for: it makes way for others. Else "interactive".
        logprobs: also return how likely each token was, and so many of the likeliest ones in its place; see `Reply.logprobs`.
            0 returns only the tokens themselves, None nothing.
        schema: what the reply has to be: a JSON Schema as a dict, or a type (a dataclass, TypedDict, NamedTuple or enum, a
            msgspec Struct, a pydantic model or TypeAdapter, `list[int]`, ...). Every token keeps it; `Reply.value` returns the
            value, `Reply.partials` what there is of it so far.
        constraint: the same for what is not JSON, and for schemas with options; instead of `schema`.
        show_schema: also put the schema into the system prompt, so that the model knows what its fields mean. True if left out.
        tools: that the model may call: `edge.Tool`s, or functions, of which `edge.tool` makes some. Those with a function are
            run, and the model goes on with the results; calls of others are in `Reply.tool_calls` when the reply is over.
        approve: who approves calls, see `edge.tool_runner.Approve`; None refuses those that need it.
        tool_choice: "required" makes the model call a tool, a tool's name that one, with arguments that keep its schema; "auto"
            leaves it to the model. It holds for the first round.
        tool_format: "prompt" tells a model of the tools in its system prompt if its chat template has no place for them.
        think: whether the model should think before it answers, where its template can say so; None leaves it to that.
        max_thinking: longest thought in tokens; after that the model has to answer. None sets no limit.
        lora: the adapters to compute this reply with, of those that the model was loaded with: names with scales, or a list of
            "NAME" and "NAME:SCALE"; an empty one is the model alone. None is the conversation's, else the assistant's. The KV
            cache of other adapters is not reused.
        consent: who allows that text leaves this device for it; None is the assistant's. See `edge.load`.
        escalate: True sends this one on to the next tier (`edge.load(..., escalate_to=)`), False never does; None leaves it to
            the router.
        docs: collections of documents to answer from: a name, an `edge.documents.Collection`, whatever else can be searched as
            one (`edge.grounding.Source`), or a list of these. Passages about the message become part of it, and of
            `Reply.citations`. An empty list searches nothing; None is what the conversation says.
    """

    timeout_s: float | None
    cache: CacheHint | None
    priority: Priority
    logprobs: int | None
    schema: Any
    constraint: Constraint | None
    show_schema: bool
    tools: Sequence[Tool | Callable[..., object]] | None
    approve: Approve | None
    tool_choice: str
    tool_format: ToolFormat
    think: bool | None
    max_thinking: int | None
    lora: Lora | None
    escalate: bool | None
    consent: Consent | None
    docs: Docs | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to a model.

    Attributes:
        prompt: messages, or a text to continue without a chat template.
        sampling: how tokens are chosen; what it leaves out is the assistant's.
        window: what happens to old messages when the context window is full, see `edge.prompt.window.fit`; None is the
            assistant's.
        timeout_s: the reply is stopped this long after it was asked for, in seconds; None never.
        cache: where the KV cache of the turn stays; None is "disk" where the assistant has one.
        namespace: of the KV cache: only what was computed in it is reused.
        priority: "background" for a reply that nobody waits for: it makes way for others.
        shared: of several requests with the same prompt, which is prefilled once; None for a prompt of its own.
        constraint: what the text of the reply has to be; None is free text.
        shape: how `Reply.value` reads that text; None is the constraint's own, see `edge.structured.shapes`.
        shows_schema: the schema of the constraint is also in the system prompt.
        answer: do not generate, but take this text as the answer, to learn how likely it is; None generates.
        n_logprobs: also return the logprob of each token, and of so many of the likeliest ones; None returns none.
        options: tools and thinking.
        inherits_tools: it says nothing about tools, so that they are the conversation's.
        approve: who approves tool calls.
        limits: of tool use.
        max_thinking: longest thought in tokens; None sets no limit.
        lora: adapters, as the call says; `Turns.make` looks them up.
        mix: those adapters, once they were looked up.
        docs: collections, as the call says; None says nothing. `Turns` opens them.
        grounding: searches them for passages of the last message; None adds none.
        is_prefill_only: prefill what all prompts share that begin with these messages, the last of them open-ended, and
            generate nothing.
        may_end: prefill also what follows the last message if nothing is added to it, where the engine can take that back.
        owner: of its blocks on the disk; None is the conversation that the reply is saved in, if there is one.
        escalate, consent: as in `RequestOptions`.
    """

    prompt: str | Sequence[Message] = ()
    sampling: Sampling = field(default_factory=Sampling)
    window: str | None = None
    timeout_s: float | None = None
    cache: CacheHint | None = None
    namespace: str = ""
    priority: Priority = "interactive"
    shared: SharedPrompt | None = None
    constraint: Constraint | None = None
    shape: Shape | None = None
    shows_schema: bool = False
    answer: str | None = None
    n_logprobs: int | None = None
    options: PromptOptions = NO_OPTIONS
    inherits_tools: bool = True
    approve: Approve | None = None
    limits: ToolLimits = field(default_factory=ToolLimits)
    max_thinking: int | None = None
    lora: Lora | None = None
    mix: Mix = ()
    docs: Docs | None = None
    grounding: Grounding | None = None
    is_prefill_only: bool = False
    may_end: bool = False
    owner: str | None = None
    escalate: bool | None = None
    consent: Consent | None = None
