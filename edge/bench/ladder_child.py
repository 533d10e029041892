"""The process of one run of the program in `edge ladder`: it loads the model as a rung says, and answers.

Requests and answers are lines of JSON. It works through `edge.load` and conversations alone, as a program of a user does;
threads, batch and attention, which are not settings, come to `load` as the results of `edge tune` do. The parent ends this
process where the program is restarted, so what the next one finds is what really survives.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from edge.bench.child import Problem, to_problem
from edge.bench.ladder_values import Setup, Turn
from edge.errors import BackendError
from edge.prompt.sentences import ends_sentence

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.backends.base import Backend
    from edge.conversation.store import ConversationStore
    from edge.dialogue import Conversation
    from edge.plan.receipt import Plan
    from edge.reply import Reply

__all__ = ["Begin", "Compute", "Reached", "Say", "Score", "Unpack", "serve"]

_KEY_S = 60 / 200  # between two keys of a person who types with ease; the last one sends the message


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Load the model.

    Attributes:
        setup: how.
        folder: of all that is stored.
        namespace: of the KV cache: one a rung, so that none finds what another one has stored.
        n_ctx: context window.
    """

    setup: Setup
    folder: bytes
    namespace: str
    n_ctx: int


class Say(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Send a message and wait for the reply.

    Attributes:
        text: the message.
        n_reply: tokens of the reply: exactly so many, so that all rungs do the same work.
        conversation: its id; "" starts one.
        system: system prompt of a new one.
        attachment: text of a document that goes with it; "" for none.
    """

    text: str
    n_reply: int
    conversation: str = ""
    system: str = ""
    attachment: str = ""


class Score(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Choose the likeliest label for each prompt."""

    prompts: list[str]
    labels: tuple[str, ...]


class Compute(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Write the logarithms of the next-token distributions of a text to a .npy file, float32 [n_tokens, n_vocab].

    Attributes:
        prefills: prefill the first half, which has no rows then, and decode the rest.
    """

    text: str
    n_tokens: int
    out: bytes
    prefills: bool = False


class Unpack(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Write the weights of a GGUF file in 16 bits."""

    source: bytes
    out: bytes
    n_threads: int


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request: what belongs to it.

    Attributes:
        turn, conversation: of Say.
        seconds, answers: of Score.
        problem: why it failed.
    """

    turn: Turn | None = None
    conversation: str = ""
    seconds: float = 0.0
    answers: tuple[str, ...] = ()
    problem: Problem | None = None


Load = Callable[..., "Assistant"]
Request = Begin | Say | Score | Compute | Unpack


class _Program:
    """One run of the program.

    Args:
        load: `edge.load`.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._ai: Assistant | None = None
        self._store: ConversationStore | None = None
        self._setup: Setup | None = None
        self._ends: dict[int, float] = {}

    def answer(self, request: Request) -> Reached:
        if isinstance(request, Unpack):
            from edge.registry import load_entry

            unpack = load_entry("edge.backends.llamacpp.unpack:unpack")
            unpack(Path(os.fsdecode(request.source)), Path(os.fsdecode(request.out)), request.n_threads)
            return Reached()
        if isinstance(request, Begin):
            return self._begin(request)
        assert self._ai is not None  # the parent sends Begin first
        assert self._setup is not None
        if isinstance(request, Say):
            return self._say(self._ai, self._setup, request)
        if isinstance(request, Score):
            return _score(self._ai, self._setup, request)
        self._ai._scheduler.call_alone(lambda backend, chunk: _compute(backend, request))
        return Reached()

    def _begin(self, request: Begin) -> Reached:
        from edge.conversation.store import ConversationStore

        folder, setup = Path(os.fsdecode(request.folder)), request.setup
        settings = _settings(setup, folder, request.n_ctx)
        _remember(setup, settings)
        self._store = ConversationStore(folder / "conversations.db")
        self._ai = self._load(
            settings=settings,
            store=self._store,
            cache="disk" if setup.disk else "memory",
            cache_namespace=request.namespace,
        )
        self._setup = setup
        assert self._ai.plan is not None
        _check(self._ai.plan, setup)
        tokenizer = self._ai._prompting.tokenizer
        self._ends = {token: float("-inf") for token in range(tokenizer.n_vocab) if tokenizer.is_end(token)}
        return Reached()

    def _say(self, ai: Assistant, setup: Setup, request: Say) -> Reached:
        from edge.conversation.tree import Attachment
        from edge.types import Sampling

        sampling = Sampling(temperature=0.0, max_tokens=request.n_reply, logit_bias=self._ends, max_repeats=0)
        system = None if request.conversation else request.system or "none"
        conversation = ai.conversation(request.conversation or None, system=system, sampling=sampling)
        attachments = [Attachment("notes.txt", request.attachment)] if request.attachment else []
        cache: Any = ("disk" if setup.disk else "memory") if setup.reuses else "off"
        ahead_ms = _type_ahead(conversation, request.text, attachments) if setup.read_ahead else 0.0
        started = time.perf_counter()
        reply = conversation.send(request.text, attachments=attachments, cache=cache)
        first_s: float | None = None
        for _ in reply:
            first_s = time.perf_counter() - started if first_s is None else first_s
        total_s = time.perf_counter() - started
        usage = reply.usage
        if not setup.reuses and usage.n_reused:
            raise BackendError(f"{usage.n_reused} tokens were reused on a rung that reuses none.", "Please report this.")
        if setup.disk:
            ai.flush_cache()  # a person reads the reply meanwhile
        turn = Turn(
            first_ms=1000 * (total_s if first_s is None else first_s),
            total_ms=1000 * total_s,
            n_prompt=usage.n_prompt,
            n_reused=usage.n_reused,
            n_restored=usage.n_restored,
            n_generated=usage.n_generated,
            n_drafted=usage.n_drafted,
            n_accepted=usage.n_accepted,
            ahead_ms=ahead_ms,
            text=reply.text,
        )
        return Reached(turn=turn, conversation=conversation.id)

    def close(self) -> None:
        for part in (self._ai, self._store):
            if part is not None:
                part.close()


def _settings(setup: Setup, folder: Path, n_ctx: int) -> Any:
    """Return the settings of a rung; nothing of the user's own."""
    from edge.config.load import load_settings

    flags = {
        "model": os.fsdecode(setup.path),
        "backend": setup.backend,
        "require": setup.accelerator,
        "context": n_ctx,
        "kv_type_k": setup.kv_type,
        "kv_type_v": setup.kv_type,
        "kv.enabled": setup.disk,
        "engine.adapt_threads": False,
        "engine.prefill_with": setup.prefill_with or "off",
        "engine.speculate": setup.speculates or setup.draft is not None,
        "engine.draft": os.fsdecode(setup.draft) if setup.draft is not None else None,
        "system": "none",
        **{f"paths.{name}_dir": str(folder / name) for name in ("data", "cache", "models")},
    }
    return load_settings(flags, environ={}, use_file=False)


def _remember(setup: Setup, settings: Any) -> None:
    """Leave threads, batch and attention where `edge tune` would, in the private folder of this measurement."""
    from edge.device.detection import probe
    from edge.formats.artifact import open_artifact
    from edge.plan.tuning import Tuning, remember

    kv: Any = setup.kv_type or _usual_kv_type(setup)
    accelerator: Any = setup.accelerator
    speed = 1.0  # nothing reads it: engine and accelerator are settings here
    tuning = Tuning(
        backend=setup.backend,
        accelerator=accelerator,
        threads=setup.threads,
        threads_batch=setup.threads_batch,
        n_ubatch=setup.n_ubatch,
        flash_attention=setup.flash_attention,
        kv_type_k=kv,
        kv_type_v=kv,
        decode_tokens_per_s=speed,
        prefill_tokens_per_s=speed,
        default_decode_tokens_per_s=speed,
        default_prefill_tokens_per_s=speed,
        n_prompt=1,
        n_decode=1,
        measured_on=date.today().isoformat(),
    )
    remember(probe(), open_artifact(os.fsdecode(setup.path)), tuning, cache_dir=settings.paths.cache_dir)


def _usual_kv_type(setup: Setup) -> str:
    from edge.device.detection import probe
    from edge.formats.artifact import open_artifact
    from edge.plan.make import make_plan
    from edge.plan.receipt import PlanRequest

    return make_plan(probe(), open_artifact(os.fsdecode(setup.path)), PlanRequest(backend=setup.backend)).kv_type_k


def _check(plan: Plan, setup: Setup) -> None:
    """Check that the model was loaded as the rung says, as far as its engine has these settings."""
    from edge.registry import ENGINES

    prefiller = plan.prefill.plan.backend if plan.prefill is not None else None
    if prefiller != setup.prefill_with:
        raise BackendError(f"{prefiller or plan.backend} prefills after loading, not {setup.prefill_with}.", "See: edge doctor")
    values = {
        "threads": (plan.n_threads, setup.threads),
        "threads_batch": (plan.n_threads_batch, setup.threads_batch),
        "n_ubatch": (plan.n_ubatch, setup.n_ubatch),
        "flash_attention": (plan.flash_attention, setup.flash_attention),
    }
    for option in ENGINES[plan.backend].options:
        real, wanted = values.get(option, (None, None))
        if real != wanted:
            raise BackendError(f"{option} is {real} after loading, and {wanted} was to be measured.", "See: edge doctor")


def _type_ahead(conversation: Conversation, text: str, attachments: Any) -> float:
    """Prefill a message as the chat does while it is typed, and return the milliseconds.

    First all but its last word, for which there is as long as typing it takes; then, where it ends a sentence, all of it, for
    which there is one key's time until it is sent. Where the engine is done sooner nobody has to wait for the rest.
    """
    head, _, last = text.rpartition(" ")
    began = time.perf_counter()
    for part, seconds in ((head, _KEY_S * (len(head) + len(last))), (text, _KEY_S)):
        if part and (part is head or ends_sentence(text)):
            _await(conversation.prewarm(part, attachments=attachments, cache="memory"), seconds)
    return 1000 * (time.perf_counter() - began)


def _await(reply: Reply, seconds: float) -> None:
    """Wait until a prefill is done, so long at most; it goes on behind that."""
    done = threading.Event()
    reply.on_done(lambda _: done.set())
    done.wait(seconds)


def _score(ai: Assistant, setup: Setup, request: Score) -> Reached:
    """Score one label after the other, or, where prompts may share what was prefilled, a few items side by side."""
    started = time.perf_counter()
    if setup.reuses:
        import asyncio

        async def together() -> list[str]:
            gate = asyncio.Semaphore(4)

            async def one(prompt: str) -> str:
                async with gate:
                    return (await ai.achoose(prompt, request.labels)).text

            first = await one(request.prompts[0])  # what all have in common is prefilled once
            return [first, *await asyncio.gather(*(one(prompt) for prompt in request.prompts[1:]))]

        answers = asyncio.run(together())
    else:
        answers = []
        for prompt in request.prompts:
            totals = {label: ai.choose(prompt, [label], cache="off").total for label in request.labels}
            answers.append(max(totals, key=lambda label: totals[label]))
    return Reached(seconds=time.perf_counter() - started, answers=tuple(answers))


def _compute(backend: Backend, request: Compute) -> None:
    import numpy as np

    from edge.bench.divergence import text_logits
    from edge.formats.logits import log_softmax

    tokens = backend.tokenizer.tokenize(request.text)[: request.n_tokens + 1]
    # Where another engine prefills, half of the text is its own; what follows is compared.
    n_prompt = max(1, len(tokens) // 2) if request.prefills else 1
    np.save(os.fsdecode(request.out), log_softmax(text_logits(backend, tokens[:-1], n_prompt)).astype(np.float32))


def serve(requests: IO[bytes], send: Callable[[bytes], None], load: Load) -> None:
    """Answer requests until there are no more.

    Args:
        requests: lines of JSON.
        send: writes one line.
        load: `edge.load`, which stands on a higher floor than this room.
    """
    program = _Program(load)
    try:
        for line in requests:
            try:
                reached = program.answer(msgspec.json.decode(line, type=Request))
            except Exception as error:  # noqa: BLE001 (any error of an engine has to reach the parent as one line)
                reached = Reached(problem=to_problem(error))
            send(msgspec.json.encode(reached))
    finally:
        program.close()
