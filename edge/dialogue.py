"""A conversation with a loaded model: messages are stored, and each is answered in a turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from edge.arguments import asked, check_attachments, check_choice, check_message, check_node_id, check_sampling, check_text
from edge.citations import PREAMBLE
from edge.conversation.reply_saver import ReplySaver
from edge.conversation.tree import Node
from edge.errors import UsageError
from edge.grounding.choose import Grounding
from edge.grounding.path import known_passages
from edge.names import CACHE_HINTS
from edge.prompt.options import NO_OPTIONS, PromptOptions
from edge.prompt.sentences import ends_sentence
from edge.prompt.summary import newest_summary
from edge.registry import TALK, load_entry
from edge.request import Request, RequestOptions
from edge.types import Message, PromptSize, Sampling

if TYPE_CHECKING:
    import asyncio

    from typing_extensions import Unpack

    from edge.adapters import Lora
    from edge.assistant import Assistant
    from edge.conversation.store import ConversationStore
    from edge.conversation.tree import Attachment, ConversationInfo
    from edge.grounding.choose import Docs
    from edge.names import CacheHint
    from edge.reply import Reply
    from edge.tiers.base import Outgoing
    from edge.tool_runner import Approve
    from edge.turns import Turns
    from edge_voice.talk import Talk, TalkOptions

__all__ = ["Conversation"]


class Conversation:
    """Messages that belong together: a tree, of which one path is active. Made by `Assistant.conversation`.

    A message is saved before the model sees it; a reply is saved about once a second and when it is done.

    Attributes:
        id: its name in the store.
        sampling: how tokens are chosen here; what it leaves out is the assistant's.
        cache: where the KV cache of its turns stays, see `send`; None is the usual place.
        options: tools and thinking, for messages that say nothing else.
        approve: who approves tool calls, see `RequestOptions`.
        lora: adapters of its replies, see `RequestOptions`; None is the assistant's. May be changed between two messages.
        docs: collections of documents that it answers from, for messages that name none, see `RequestOptions`. May be changed
            between two messages; a question that was answered keeps its passages.
    """

    def __init__(
        self,
        assistant: Assistant,
        turns: Turns,
        id: str,
        sampling: Sampling | None = None,
        *,
        cache: CacheHint | None = None,
        unsaved: ConversationInfo | None = None,
        options: PromptOptions = NO_OPTIONS,
        approve: Approve | None = None,
        lora: Lora | None = None,
        docs: Docs | None = None,
    ) -> None:
        self.id = id
        self.docs = docs
        self.lora = lora
        self.options = options
        self.approve = approve
        self.sampling = sampling
        self.cache = cache
        self._assistant = assistant  # stays open as long as this is held
        self._turns = turns
        self._unsaved = unsaved
        self._saving = threading.Lock()

    @property
    def _store(self) -> ConversationStore:
        return self._turns.open_store()

    @property
    def info(self) -> ConversationInfo:
        """The conversation as the store lists it."""
        store, unsaved = self._store, self._unsaved
        return store.get(self.id) if unsaved is None else unsaved

    def _save(self, history: Sequence[Message] = ()) -> ConversationStore:
        """Return the store, in which the conversation is created, with these first messages, if that has not happened yet."""
        store = self._store
        with self._saving:
            if self._unsaved is not None:
                new = self._unsaved
                store.create(
                    id=self.id,
                    system=new.system,
                    model=new.model,
                    cache_namespace=new.cache_namespace,
                    history=history,
                )
                self._unsaved = None
        return store

    @property
    def title(self) -> str:
        """Its title, at first made from the first message. Setting it renames the conversation."""
        return self.info.title

    @title.setter
    def title(self, title: str) -> None:
        check_text("title", title)
        self._save().rename(self.id, title)

    async def arename(self, title: str) -> None:
        """Set the title without blocking the event loop."""
        import asyncio

        check_text("title", title)
        await asyncio.to_thread(lambda: self._save().rename(self.id, title))

    async def ainfo(self) -> ConversationInfo:
        """Return `info`, with title and system prompt, without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(lambda: self.info)

    async def amessages(self) -> list[Node]:
        """Return `messages` without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(lambda: self.messages)

    @property
    def system(self) -> str:
        """The system prompt. Setting it changes how later turns begin."""
        return self.info.system

    @system.setter
    def system(self, system: str) -> None:
        check_text("system", system)
        self._save().set_system(self.id, system)

    @property
    def messages(self) -> list[Node]:
        """The active path, first message first."""
        store = self._store
        return store.path(self.id) if self._unsaved is None else []

    def _path(self, node_id: int | None) -> list[Node]:
        """Return the path to a message; None is the last one of the active path, and may be missing."""
        if node_id is None:
            return self.messages
        return self._saved.path(self.id, node_id)

    @property
    def _saved(self) -> ConversationStore:
        """The store, which has at least one message of this conversation."""
        store = self._store
        if self._unsaved is not None:
            raise UsageError("This conversation is empty.", "Send a message first.")
        return store

    def send(
        self,
        text: str,
        *,
        attachments: Sequence[Attachment] = (),
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> Reply:
        """Send a message and return the reply.

        Args:
            text: the message.
            attachments: texts that go with it.
            sampling: for this reply only; what it leaves out is the conversation's.
            options: see `RequestOptions`. Fields of `Sampling` as keywords win over `sampling`:
                `send("hi", max_tokens=5, temperature=0, timeout_s=20)`.

        Returns:
            The running reply. It stops when nobody holds it any more; see `Reply`.

        Raises:
            UsageError: the message is empty, an argument has the wrong type, or a reply is still running here.
            ContextFullError: the message is far larger than the context window; nothing was saved.
            StorageError: it could not be saved; nothing was sent.
            BackendError: the assistant is closed, or was loaded in another process; nothing was saved. All other errors come
                from the reply.
        """
        check_message(text, attachments)
        self._check_size(text, attachments)
        request = asked(sampling, options)
        record = self._record_of(request.cache)
        return self._answer(
            lambda: self._save().append(
                self.id, Message("user", text), parent=self.info.head, attachments=tuple(attachments), record=record
            ),
            request,
        )

    async def asend(
        self,
        text: str,
        *,
        attachments: Sequence[Attachment] = (),
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> Reply:
        """Send as `send` does, without blocking the event loop while the message is saved.

        A task that is cancelled meanwhile leaves the message saved and its reply stopped.
        """
        import asyncio

        send = partial(self.send, text, attachments=attachments, sampling=sampling, **options)
        # Not the task's result, which its thread holds for a moment longer than whoever leaves the reply.
        sent: list[Reply] = []
        sending = asyncio.ensure_future(asyncio.to_thread(lambda: sent.append(send())))
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            sending.add_done_callback(partial(_stop_reply, sent))
            raise
        return sent.pop()

    def regenerate(
        self,
        node_id: int | None = None,
        *,
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> Reply:
        """Answer a message again, as a new branch beside the old answer.

        Args:
            node_id: an answer, or a message of the user; None is the last one of the active path.
            sampling, options: as in `send`.

        Raises:
            UsageError: there is nothing to answer, or a reply is still running here.
        """
        check_node_id(node_id, is_optional=True)
        path = self._path(node_id)
        question = next((node for node in reversed(path) if node.role == "user"), None)
        if question is None:
            raise UsageError("There is no message to answer yet.", "Send one first.")
        old_head = self.info.head

        def go_back() -> Node:
            self._store.set_head(self.id, question.id)
            return question

        return self._answer(go_back, asked(sampling, options), fallback=old_head)

    def resume(
        self,
        node_id: int | None = None,
        *,
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> Reply:
        """Continue an answer that was stopped or cut off, in the same message.

        The model goes on where the text ends, and the KV cache has nearly all of the prompt. The reply is what is added;
        `reply.node` is the whole message. If nothing is added, the message stays as it was.

        Args:
            node_id: an answer that no message follows; None is the last one of the active path.
            sampling, options: as in `send`; `max_tokens` counts what is added.

        Raises:
            UsageError: it is not an answer, other messages follow it, or a reply is still running here.
        """
        check_node_id(node_id, is_optional=True)
        path = self._path(node_id)
        answer = path[-1] if path else None
        if answer is None or answer.role != "assistant" or answer.parent is None:
            raise UsageError("There is no answer to continue.", "Send a message, or regenerate the answer to the last one.")
        prepare = partial(self._store.reopen, answer.id)
        return self._answer(prepare, asked(sampling, options), continued=answer)

    def edit(
        self,
        node_id: int,
        text: str,
        *,
        attachments: Sequence[Attachment] | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> Reply:
        """Send a message in place of an earlier one, as a new branch, and return the reply.

        Args:
            node_id: one of the user's messages.
            text: the new message.
            attachments: None keeps the earlier ones.
            sampling, options: as in `send`.

        Raises:
            UsageError: it is not a message of the user, is empty, or a reply is still running here.
            ContextFullError: the message is far larger than the context window; nothing was saved.
        """
        check_node_id(node_id)
        old = self._path(node_id)[-1]
        if old.role != "user":
            raise UsageError("Only your own messages can be edited.", "To get another answer, regenerate it.")
        kept = old.attachments if attachments is None else tuple(attachments)
        check_message(text, kept)
        self._check_size(text, kept)
        request = asked(sampling, options)
        record = self._record_of(request.cache)
        if request.cache is None and not record and "cache" in old.record:
            record = {"cache": old.record["cache"]}  # the new text is as private as the old one
        return self._answer(
            lambda: self._store.append(self.id, Message("user", text), parent=old.parent, attachments=kept, record=record),
            request,
        )

    def shorten(self, node_id: int, length: int) -> Node:
        """Cut the last answer after so many characters, as if it had been stopped there.

        The next turn reuses the KV cache up to there. What is cut off stays in `record["interrupted"]["unheard"]`. With 0 the
        message that it answers is the last one again, and the answer a branch that is left.

        Args:
            node_id: a finished answer that no message follows.
            length: characters that stay; more than it has leave it as it is.

        Returns:
            The last message.

        Raises:
            UsageError: it is not such an answer, the length is negative, or a reply is still running here.
        """
        check_node_id(node_id)
        if length < 0:
            raise UsageError(f"A length is 0 or more, not {length}.", "It counts characters of the answer.")
        store = self._saved
        self._turns.claim(self.id)
        try:
            node = store.node(node_id)
            kept, rest = node.content[:length], node.content[length:]
            if not rest:
                return node
            if not kept and node.parent is not None:
                store.set_head(self.id, node.parent)
                return store.node(node.parent)
            tokens = node.record.get("tokens")
            if not isinstance(tokens, list) or not self._turns.prompting.spells(tokens, node.content):
                tokens = []
            record = {
                **node.record,
                "tokens": self._turns.prompting.leading_tokens(tokens, kept),
                "interrupted": {"unheard": rest},
            }
            return store.shorten(node_id, length, record)
        finally:
            self._turns.release(self.id)

    def talk(self, **options: Unpack[TalkOptions]) -> Talk:
        """Hold this conversation by voice: listen, answer aloud, and be interrupted.

            with conversation.talk(hands_free=True) as talk:
                for event in talk:
                    print(event)

        What is said and answered is saved as by `send`; an answer that was interrupted, as far as it was heard. Models for
        voice that are missing are fetched first, and where no voice is named, a device is measured once for some seconds; the
        options on_fetch and on_measure tell of both.

        Args:
            options: see `edge_voice.talk.TalkOptions`; what they leave out is in the settings.

        Returns:
            The talk, which listens from its first event on. Close it, or use it as a context manager.

        Raises:
            BackendUnavailableError: a package of the extra "voice" is missing.
            ModelNotFoundError: a voice model is not here, and edge is offline.
            DownloadError, ChecksumError, StorageError: one could not be fetched.
            BackendError: the assistant is closed.
        """
        self._turns.check_open()
        opened: Talk = load_entry(TALK)(self, **options)
        return opened

    async def atalk(self, **options: Unpack[TalkOptions]) -> Talk:
        """Open a talk as `talk` does, without blocking the event loop while its models are loaded."""
        import asyncio

        return await asyncio.to_thread(partial(self.talk, **options))

    def prewarm(self, text: str = "", *, attachments: Sequence[Attachment] = (), **options: Unpack[RequestOptions]) -> Reply:
        """Prefill the conversation up to its next message, so that this is answered sooner.

        It makes way for replies, and the next message of this conversation ends it; what is prefilled by then is reused.

        Args:
            text: how the next message begins.
            attachments: those that the next message will have.
            options: as in `send`; tools, a schema and thinking are part of the prompt, and a schema is compiled, too.

        Returns:
            A reply without text, whose `progress`, `usage` and `timing` are those of the prefill. It goes on although nobody
            holds it; `cancel` stops it.

        Raises:
            UsageError: an argument has the wrong type.
            BackendError: the assistant is closed, or was loaded in another process. All other errors come from the reply.
        """
        return self._prewarm(text, attachments, options, self.id, may_end=True)

    def count(self, text: str = "", *, attachments: Sequence[Attachment] = (), **options: Unpack[RequestOptions]) -> PromptSize:
        """Count the tokens that the whole conversation has as a prompt, with its next message and all that its template adds.

        Args:
            text, attachments: the next message; without them, the conversation as it is.
            options: as in `send`; tools and a schema are part of the prompt.

        Returns:
            Its size, and what is left of the context window. Below 0, `send` would leave out old messages, or summarise or
            refuse them, as `Assistant.window` says.

        Raises:
            UsageError: an argument has the wrong type.
            ContextFullError: the message alone is far larger than the context window.
            TemplateError: the model's template refuses these messages.
            BackendError: the assistant is closed, or was loaded in another process.
        """
        check_text("text", text)
        check_attachments(attachments)
        self._check_size(text, attachments)
        request = asked(None, options)
        next_one = [Node(0, None, "user", text, tuple(attachments))] if text or attachments else []
        prompt = self._prompt([*self.messages, *next_one], self.info)
        return self._turns.count(replace(request, prompt=prompt, options=self._options(request)))

    def outgoing(
        self,
        text: str,
        *,
        attachments: Sequence[Attachment] = (),
        sampling: Sampling | None = None,
        **options: Unpack[RequestOptions],
    ) -> Outgoing | None:
        """Return what would leave this device if a message were sent on to the next tier: all messages. Sends nothing.

        Args:
            text, attachments, sampling, options: as in `send`; no text is the conversation as it is, for `regenerate`.

        Returns, and raises:
            As `Assistant.outgoing`.
        """
        check_text("text", text)
        check_attachments(attachments)
        request = asked(sampling, options)
        chosen = request.sampling.over(check_sampling(self.sampling) or Sampling())
        nodes = [*self.messages, *([Node(0, None, "user", text, tuple(attachments))] if text or attachments else [])]
        while nodes and nodes[-1].role != "user":
            nodes.pop()  # the answer that would be given again
        if not nodes:
            raise UsageError("There is no message to send on.", "Give a text.")
        prompt = self._prompt(nodes, self.info)
        lora = self.lora if request.lora is None else request.lora
        return self._turns.outgoing(replace(request, prompt=prompt, sampling=chosen, options=self._options(request), lora=lora))

    async def acount(
        self, text: str = "", *, attachments: Sequence[Attachment] = (), **options: Unpack[RequestOptions]
    ) -> PromptSize:
        """Count as `count` does, without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(partial(self.count, text, attachments=attachments, **options))

    def fork(self, node_id: int | None = None) -> Conversation:
        """Copy the path up to a message (None: all of it) into a new conversation.

        Raises:
            UsageError: there is no such message, or no message at all.
        """
        check_node_id(node_id, is_optional=True)
        path = self._path(node_id)
        if not path:
            raise UsageError("This conversation is empty.", "Send a message first.")
        fork = self._store.fork(self.id, path[-1].id)
        return Conversation(
            self._assistant,
            self._turns,
            fork.id,
            self.sampling,
            cache=self.cache,
            options=self.options,
            approve=self.approve,
            lora=self.lora,
            docs=self.docs,
        )

    def branches(self, node_id: int) -> list[Node]:
        """Return a message and its alternatives, oldest first."""
        check_node_id(node_id)
        return self._saved.siblings(node_id)

    def switch(self, node_id: int) -> None:
        """Make the branch of a message the active one, down to its newest message.

        Raises:
            UsageError: a reply is still running here.
        """
        check_node_id(node_id)
        store = self._saved
        self._turns.claim(self.id)
        try:
            store.set_head(self.id, store.leaf(node_id).id)
        finally:
            self._turns.release(self.id)

    def __repr__(self) -> str:
        return f"<Conversation {self.id}>"

    def _check_size(self, text: str, attachments: Sequence[Attachment]) -> None:
        """Refuse what cannot fit before it is saved and becomes part of the conversation."""
        self._turns.check_size([text, *(attachment.text for attachment in attachments)])

    def _answer(
        self,
        prepare: Callable[[], Node],
        request: Request,
        fallback: int | None = None,
        continued: Node | None = None,
    ) -> Reply:
        """Claim the conversation, make the message to answer, and start a turn that releases the conversation at its end.

        Args:
            prepare: makes the message, or reopens the answer that is continued.
            request: what the call says.
            fallback: becomes the head again if the reply is empty.
            continued: the answer that is continued, as it was.
        """
        turns = self._turns
        turns.check_open()
        cache = request.cache or check_choice("cache", self.cache, CACHE_HINTS)
        turns.check_cache(cache)
        sampling = request.sampling.over(check_sampling(self.sampling) or Sampling())
        lora = self.lora if request.lora is None else request.lora
        turns.mix_of(lora)  # before anything is saved
        docs = self.docs if request.docs is None else request.docs
        turns.sources.find(docs)  # likewise
        turns.claim(self.id)
        saver: ReplySaver | None = None
        turns.stop_warming(self.id)
        try:
            info = self.info
            head_before = info.head
            last = prepare()
            nodes = self._store.path(self.id, last.id)
            messages = self._prompt(nodes, info)
            question = last
            if continued is not None:
                nodes.pop()
                messages.pop()
                question = nodes[-1]
            saver = ReplySaver(self._store, self.id, question.id, self._assistant.model_name, fallback, head_before, continued)
            summary = newest_summary([node.record for node in nodes])
            request = replace(
                request,
                prompt=messages,
                sampling=sampling,
                cache=cache or _inherited_hint(nodes),
                namespace=info.cache_namespace,
                options=self._options(request),
                approve=request.approve or self.approve,
                lora=lora,
                grounding=self._ground(nodes, docs),
            )
            turn = turns.make(request, saver, summary)
            return turns.start_claimed(self.id, turn, self._assistant)
        except BaseException:
            if saver is not None:
                saver.save_end("", "failed", {})  # an answer that was reopened is as it was again
            turns.release(self.id)
            raise

    def _ground(self, nodes: Sequence[Node], docs: Docs | None) -> Grounding | None:
        """Return the passages of the last question, or the search for them; None if it rests on no documents."""
        known = known_passages(nodes)
        if known.chosen is not None:
            return Grounding.known(known.chosen)
        if nodes[-1].role != "user":
            return None  # a result of a tool
        is_first = len(nodes) == 1
        return self._turns.ground(docs, known.question, earlier=known.earlier, before=known.before, is_first=is_first)

    def _options(self, request: Request) -> PromptOptions:
        """Return what a call says about tools and thinking; what it leaves out is the conversation's."""
        own, given = self.options, request.options
        think = own.think if given.think is None else given.think
        if request.inherits_tools:
            tool_format = own.tool_format if given.tool_format == "template" else given.tool_format
            return PromptOptions(own.tools, tool_format, given.tool_choice, think)
        return replace(given, think=think)

    def _prewarm(
        self,
        text: str,
        attachments: Sequence[Attachment],
        options: RequestOptions,
        owner: str,
        *,
        may_end: bool = False,
    ) -> Reply:
        check_text("text", text)
        check_attachments(attachments)
        self._check_size(text, attachments)
        turns, asked_for = self._turns, asked(None, options)
        hint = check_choice("cache", self.cache, CACHE_HINTS) if asked_for.cache is None else asked_for.cache
        turns.check_cache(hint)
        nodes = self.messages
        summary = newest_summary([node.record for node in nodes])
        if turns.sources.find(self.docs if asked_for.docs is None else asked_for.docs):
            text, attachments, may_end = PREAMBLE, (), False  # which passages follow is known once it is asked
        request = replace(
            asked_for,
            options=self._options(asked_for),
            prompt=self._prompt([*nodes, Node(0, None, "user", text, tuple(attachments))], self.info),
            cache=hint or _inherited_hint(nodes),
            namespace=self.info.cache_namespace,
            priority="background",
            lora=self.lora if asked_for.lora is None else asked_for.lora,
            is_prefill_only=True,
            # Never what is stored: the template's end of a message that goes on after all would be written in vain.
            may_end=may_end and hint == "memory" and ends_sentence(text),
            owner=owner,
        )
        turn = turns.make(request, summary=summary)
        return turns.start_warming(self.id, turn, self._assistant).detach()

    def _prompt(self, nodes: Sequence[Node], info: ConversationInfo) -> list[Message]:
        """Return the messages of a prompt, whose replies will have the tokens that were generated."""
        prompting = self._turns.prompting
        prompting.recall_replies((node.content, node.record.get("tokens")) for node in nodes)
        return [*prompting.system_message(info.system), *(node.message() for node in nodes)]

    def _record_of(self, cache: CacheHint | None) -> dict[str, object]:
        """Return the record of a message: that its KV cache is not to be stored, also in later turns."""
        hint = cache if cache is not None else self.cache
        return {"cache": hint} if hint in ("off", "memory") else {}


def _inherited_hint(nodes: Sequence[Node]) -> CacheHint:
    """Return where the KV cache of a turn stays if nobody says: it contains that of all these messages."""
    found = {node.record.get("cache") for node in nodes if isinstance(node.record.get("cache"), str)}
    return next((hint for hint in ("off", "memory") if hint in found), "disk")


def _stop_reply(sent: list[Reply], sending: asyncio.Future[None]) -> None:
    """Cancel a reply that nobody waits for any more."""
    if not sending.cancelled():
        sending.exception()  # seen: nobody waits for that either
    for reply in sent:
        reply.cancel()
