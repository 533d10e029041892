"""What a loaded model answers without a conversation: the part of `Assistant` that asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from edge.arguments import asked, check_number, check_text
from edge.batch import Batch
from edge.engine.generation import SharedPrompt
from edge.errors import UsageError
from edge.judging import Judging
from edge.request import RequestOptions
from edge.types import Message, Sampling, kind_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edge.embedding.base import Embeddings
    from edge.judging import Prompt
    from edge.reply import Reply
    from edge.request import Request
    from edge.tiers.base import Outgoing
    from edge.types import PromptSize

__all__ = ["Asking"]

T = TypeVar("T")


class Asking(Judging):
    """See the module. `Assistant` sets the turns."""

    def generate(
        self,
        prompt: str | Prompt,
        sampling: Sampling | None = None,
        *,
        cache_namespace: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> Reply:
        """Answer once, without a conversation: a text as one user message, or messages.

        Args:
            prompt: the text, or messages of which the last is to be answered: `Message`, those of a conversation, or dicts with
                "role" and "content".
            sampling: how tokens are chosen; what it leaves out is the assistant's.
            cache_namespace: who shares its KV cache, see `conversation`.
            options: see `RequestOptions`. Fields of `Sampling` as keywords win over `sampling`:
                `generate("hi", max_tokens=5, temperature=0, timeout_s=20)`.

        Raises:
            UsageError: there is no message, or an argument has the wrong type.
            BackendError: the assistant is closed, or was loaded in another process. All other errors come from the reply.
        """
        return self._answer(self._with_system(prompt), asked(sampling, options), cache_namespace)

    def outgoing(
        self, prompt: str | Prompt, sampling: Sampling | None = None, **options: Unpack[RequestOptions]
    ) -> Outgoing | None:
        """Return what would leave this device if `generate` sent this on to the next tier. Sends nothing.

        Args:
            prompt, sampling, options: as in `generate`.

        Returns:
            All that would be sent, and where to; None if the next tier is a model on this device.

        Raises:
            UsageError: there is no next tier, it cannot take this, or an argument is wrong.
            BackendError: the assistant is closed, or was loaded in another process.
        """
        return self._turns.outgoing(replace(asked(sampling, options), prompt=self._with_system(prompt)))

    def pass_on(self, request: Request) -> Reply:
        """Answer what another model was asked, with all that was asked of it: the work of a tier (`edge.tiers.local`).

        Raises:
            BackendError: the assistant is closed. All other errors come from the reply.
        """
        self._turns.check_open()
        return self._turns.start(self._turns.make(replace(request, escalate=False)), self)

    def generate_choices(
        self,
        prompt: str | Prompt,
        n: int,
        sampling: Sampling | None = None,
        *,
        cache_namespace: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[Reply]:
        """Answer a prompt several times at once, to choose from. The prompt is prefilled once, and the replies share it.

        Args:
            prompt, cache_namespace, options: as in `generate`.
            n: number of replies.
            sampling: as in `generate`. With a seed, reply number i has the seed + i; at temperature 0 all are nearly the same.

        Returns:
            The running replies. `Usage.total` adds up what they took.

        Raises:
            As `generate`.
        """
        check_number("n", n)
        messages = self._with_system(prompt)
        request = self._grounded(messages, asked(sampling, options))
        seed = request.sampling.over(self._turns.sampling).seed
        requests = [
            replace(request, sampling=request.sampling if seed is None else Sampling(seed=seed + i).over(request.sampling))
            for i in range(n)
        ]
        shared = SharedPrompt()
        return [self._answer(messages, replace(one, shared=shared), cache_namespace) for one in requests]

    def batch(
        self,
        prompts: Iterable[str | Prompt],
        sampling: Sampling | None = None,
        *,
        n_at_once: int | None = None,
        cache_namespace: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> Batch:
        """Answer many prompts a few at a time, in the background: replies that somebody waits for go first.

        Args:
            prompts: each as in `generate`. Those of a list or tuple are sorted, so that prompts which begin alike follow each
                other and share the KV cache; others are read as it goes.
            sampling, cache_namespace, options: as in `generate`; the priority is "background" unless they say another.
            n_at_once: replies that run at the same time; None is as many as the engine has sequences, and one more.

        Returns:
            What yields (number of the prompt, its reply) as they end: `for number, reply in ai.batch(prompts): ...`

        Raises:
            UsageError: an argument has the wrong type.
            BackendError: the assistant is closed, or was loaded in another process. All other errors come from the replies.
        """
        self._turns.check_open()
        n_running = self._turns.n_seq + 1 if n_at_once is None else check_number("n_at_once", n_at_once)
        request = asked(sampling, {"priority": "background", **options})
        if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
            raise UsageError(f"prompts is a list of prompts, not {kind_of(prompts)}.", 'For example: ["One?", "Two?"]')
        numbered: Iterable[tuple[int, list[Message]]] = (self._numbered(i, prompt) for i, prompt in enumerate(prompts))
        if isinstance(prompts, Sequence):
            numbered = sorted(numbered, key=lambda one: [(message.role, message.content) for message in one[1]])
        return Batch(numbered, lambda messages: self._answer(messages, request, cache_namespace), n_running)

    def _numbered(self, number: int, prompt: str | Prompt) -> tuple[int, list[Message]]:
        """Return a prompt of a batch; the error of one that is wrong says which."""
        try:
            return number, self._with_system(prompt)
        except UsageError as error:
            raise UsageError(f"Prompt {number}: {error.message}", error.hint) from None

    def complete(
        self,
        text: str,
        sampling: Sampling | None = None,
        *,
        cache_namespace: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> Reply:
        """Continue a text, without chat template: for base models and for measuring.

        Args:
            text: the beginning.
            sampling, cache_namespace, options: as in `generate`.

        Raises:
            UsageError: there is no text, or an argument has the wrong type.
            BackendError: the assistant is closed, or was loaded in another process. All other errors come from the reply.
        """
        if not check_text("text", text):
            raise UsageError("There is no text to continue.", "Give at least one character.")
        return self._answer(text, asked(sampling, options), cache_namespace)

    def count(self, prompt: str | Prompt, **options: Unpack[RequestOptions]) -> PromptSize:
        """Count the tokens that `generate` would have as its prompt, with all that the chat template adds.

        Args:
            prompt: as in `generate`.
            options: as in `generate`; tools and a schema are part of the prompt.

        Returns:
            Its size, and what is left of the context window. `Conversation.count` does it for a conversation.

        Raises:
            UsageError: there is no message, or an argument has the wrong type.
            ContextFullError: a message alone is far larger than the context window.
            TemplateError: the model's template refuses these messages.
            BackendError: the assistant is closed, or was loaded in another process.
        """
        messages = self._with_system(prompt)
        self._turns.check_size([message.content for message in messages])
        return self._turns.count(replace(asked(None, options), prompt=messages))

    async def acount(self, prompt: str | Prompt, **options: Unpack[RequestOptions]) -> PromptSize:
        """Count as `count` does, without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(self.count, prompt, **options)

    def embed(
        self, texts: str | Sequence[str], model: str | None = None, *, dimensions: int | None = None, truncate: bool = False
    ) -> Embeddings:
        """Return a vector for each text, from a model for embeddings beside this one. Args and errors: see `edge.embed`."""
        from edge.embedding.loading import embed

        return embed(texts, model, dimensions=dimensions, truncate=truncate)

    async def aembed(
        self, texts: str | Sequence[str], model: str | None = None, *, dimensions: int | None = None, truncate: bool = False
    ) -> Embeddings:
        """Return a vector for each text, as `embed`, without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(self.embed, texts, model, dimensions=dimensions, truncate=truncate)

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text for this model, without special ones.

        Raises:
            UsageError: it is not a str.
            BackendError: the assistant is closed, or was loaded in another process.
        """
        self._turns.check_open()
        check_text("text", text)
        return len(self._turns.prompting.tokenize(text))

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of a text for this model.

        Args:
            text: the text.
            add_special: with what the model wants at the start of a text.
            parse_special: read control tokens that are written out, such as "<|im_end|>".

        Raises:
            UsageError: it is not a str.
            BackendError: the assistant is closed, or was loaded in another process.
        """
        self._turns.check_open()
        check_text("text", text)
        return list(self._turns.prompting.tokenize(text, add_special=add_special, parse_special=parse_special))

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, with special tokens written out.

        Raises:
            BackendError: the assistant is closed, or was loaded in another process.
        """
        self._turns.check_open()
        if isinstance(tokens, str | bytes) or not all(isinstance(token, int) for token in tokens):
            raise UsageError(f"tokens are token ids, not {kind_of(tokens)}.", "For example: [1, 2, 3]")
        tokenizer = self._turns.prompting.tokenizer
        return b"".join(tokenizer.token_bytes(token, special=True) for token in tokens).decode("utf-8", "replace")

    async def acount_tokens(self, text: str) -> int:
        """Count tokens as `count_tokens` does, without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(self.count_tokens, text)
