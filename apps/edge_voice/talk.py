"""A conversation by voice: what is said is sent, the reply is spoken, and what was not heard of it is cut off.

While the user speaks, the partial transcript is prefilled into the KV cache; what changes later is rolled back by the next one,
which shares its beginning. `open_talk` is what `edge.Conversation.talk` finds by name.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, TypedDict

from edge.errors import EdgeError
from edge_voice.events import (
    Endpoint,
    Final,
    Interrupted,
    Notice,
    Partial,
    ReplyDone,
    ReplyText,
    Timings,
    Unclear,
    VoiceEvent,
)
from edge_voice.line import Line, Stages
from edge_voice.streams import EventStream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edge.config import Settings
    from edge.dialogue import Conversation
    from edge.reply import Reply
    from edge_voice.models import OnFetch

__all__ = ["Talk", "TalkOptions", "open_talk"]

_STOPPING_S = 30.0  # longest wait for a cancelled reply: far more than one chunk or token takes


class TalkOptions(TypedDict, total=False):
    """Options of `open_talk`.

    Attributes:
        settings: instead of those of files and environment.
        hands_free: listen all the time, instead of what the settings say.
        stages: instead of those that the settings name; the talk closes them.
        on_fetch: called with the progress of models that are fetched since they are missing; see `edge_voice.models.OnFetch`.
        on_measure: called with the progress of a measurement, which happens once where the voice is not named; see
            `edge_voice.tts.choice.measure_kokoro`.
        clock: seconds, instead of `time.monotonic`; for tests.
        is_threaded: False leaves the microphone to calls of `talk.line.step`; for tests.
    """

    settings: Settings
    hands_free: bool
    stages: Stages
    on_fetch: OnFetch
    on_measure: Callable[[int, int], None]
    clock: Callable[[], float]
    is_threaded: bool


@dataclass(slots=True)
class _Turn:
    """A message and its reply.

    Attributes:
        question: the message; question_id: its node.
        reply: the reply; None before it was started.
        endpoint_s: when the user had finished.
        heard: what was heard of the reply; None while it is not over.
    """

    question: str
    endpoint_s: float
    timings: Timings
    question_id: int | None = None
    reply: Reply | None = None
    first_token_s: float | None = None
    heard: str | None = None
    is_interrupted: bool = False


class Talk:
    """A conversation that is held by voice. `for` and `async for` yield its events, each once.

    Args:
        conversation: where everything is saved.
        stages, settings, clock, is_threaded: see `TalkOptions`.

    Attributes:
        conversation: see above.
        line: the devices and both halves.
    """

    def __init__(
        self,
        conversation: Conversation,
        stages: Stages,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        is_threaded: bool = True,
    ) -> None:
        self.conversation = conversation
        self._reads_ahead = settings.voice.read_ahead
        self._clock = clock
        self._events = EventStream()
        self._jobs: queue.SimpleQueue[VoiceEvent | None] = queue.SimpleQueue()
        self._turn: _Turn | None = None
        self._prefill: Reply | None = None
        self._prefilled = ""
        self._endpoint: Endpoint | None = None
        self._is_closed = False
        self.line = Line(stages, settings.voice, self._take, on_spoken=self._spoken, clock=clock, is_threaded=is_threaded)
        self._thread = threading.Thread(target=self._work, name="edge-voice-talk", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[VoiceEvent]:
        return iter(self._events)

    def __aiter__(self) -> AsyncIterator[VoiceEvent]:
        return self._events.__aiter__()

    def get(self, timeout_s: float | None = None) -> VoiceEvent | None:
        """Return the next event; None once the talk is closed, or after timeout_s seconds without one."""
        return self._events.get(timeout_s)

    def listen(self) -> None:
        """Hear one utterance and answer it; a reply that is being spoken is interrupted."""
        self.line.listen()

    def release(self) -> None:
        """End the utterance that `listen` began, without waiting for a pause."""
        self.line.release()

    def interrupt(self) -> bool:
        """Fall silent and stop the reply, as if the user had spoken; return whether there was one."""
        return self.line.interrupt()

    def say(self, text: str) -> None:
        """Send a message as if it had been said; the reply is spoken."""
        self.line.interrupt()
        self._take(Final(text, 0.0, 0.0))

    @property
    def is_idle(self) -> bool:
        """Return whether nobody speaks and nothing is being answered."""
        turn, line = self._turn, self.line
        is_over = turn is None or turn.heard is not None
        return is_over and self._jobs.empty() and not (line.ear.is_hearing or line.mouth.is_speaking)

    def close(self) -> None:
        """Stop everything; what was heard of a reply is saved. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self.line.interrupt()
        self._jobs.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.line.close()
        self._events.end()

    async def aclose(self) -> None:
        """Close without blocking the event loop."""
        import asyncio

        await asyncio.to_thread(self.close)

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Talk:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # From the line's threads

    def _take(self, event: VoiceEvent) -> None:
        self._events.add(event)
        if isinstance(event, (Partial, Endpoint, Final, Unclear, Interrupted)):
            self._jobs.put(event)

    def _spoken(self, text: str) -> None:
        turn = self._turn
        if turn is not None and turn.reply is not None:
            self._end(turn, text)

    # The thread of the talk

    def _work(self) -> None:
        while (event := self._jobs.get()) is not None:
            try:
                self._handle(event)
            except EdgeError as error:
                self.line.mouth.stop()
                self._turn = None
                self._events.add(Notice(str(error)))
        self._cancel_prefill()

    def _handle(self, event: VoiceEvent) -> None:
        match event:
            case Partial(text=text):
                self._read_ahead(text)
            case Endpoint():
                self._endpoint = event
            case Interrupted(heard=heard):
                self._cut(heard)
            case Final(text=text, transcribe_s=took_s):
                self._answer(text, took_s)
            case Unclear():
                self._go_on()

    def _read_ahead(self, text: str) -> None:
        """Prefill what the message will begin with."""
        if not self._reads_ahead or text == self._prefilled:
            return
        unheard = self._unheard()
        self._cancel_prefill()
        self._prefilled = text
        if unheard is None:  # otherwise the message will replace another one, behind which nothing can be prefilled yet
            with contextlib.suppress(EdgeError):  # sending says why
                self._prefill = self.conversation.prewarm(text, cache="memory")

    def _cancel_prefill(self) -> None:
        if self._prefill is not None:
            self._prefill.cancel()
            self._prefill = None

    def _unheard(self) -> _Turn | None:
        """Return the last turn if nothing of its reply was heard: the user had not finished, or thought better of it."""
        turn = self._turn
        return turn if turn is not None and turn.is_interrupted and not turn.heard and turn.question_id is not None else None

    def _answer(self, text: str, took_s: float) -> None:
        """Send a message and speak its reply. It takes the place of one whose reply nobody heard."""
        unheard, endpoint = self._unheard(), self._endpoint
        self._endpoint = None
        self._prefilled, self._prefill = "", None
        if unheard is not None:
            text = f"{unheard.question} {text}"
        now_s = self._clock()
        delay_s = endpoint.delay_s if endpoint is not None else None
        turn = self._turn = _Turn(text, endpoint.at_s if endpoint is not None else now_s, Timings(delay_s, took_s))
        self.line.mouth.begin()
        if unheard is not None and unheard.question_id is not None:
            turn.reply = self.conversation.edit(unheard.question_id, text)
        else:
            turn.reply = self.conversation.send(text)
        turn.reply.detach()
        path = self.conversation.messages
        turn.question_id = next((node.id for node in reversed(path) if node.role == "user"), None)
        self._follow(turn)

    def _follow(self, turn: _Turn) -> None:
        threading.Thread(target=self._feed, args=(turn,), name="edge-voice-reply", daemon=True).start()

    def _feed(self, turn: _Turn) -> None:
        """Hand the reply to the mouth as it is generated."""
        reply, mouth = turn.reply, self.line.mouth
        assert reply is not None
        try:
            for text in reply:
                if turn.first_token_s is None:
                    turn.first_token_s = self._clock()
                if turn.is_interrupted:
                    break
                self._events.add(ReplyText(text))
                mouth.add(text)
        except EdgeError as error:
            self._events.add(Notice(str(error)))
        finally:
            if not turn.is_interrupted:
                mouth.end()

    def _cut(self, heard: str) -> None:
        """Stop the reply, and cut what is saved of it to what was heard."""
        turn = self._turn
        if turn is None or turn.reply is None or turn.heard is not None:
            return
        turn.is_interrupted = True
        turn.reply.cancel()
        with contextlib.suppress(EdgeError, TimeoutError):  # whoever reads it says why
            turn.reply.wait(_STOPPING_S)
        node = turn.reply.node
        if node is not None:
            self.conversation.shorten(node.id, len(heard))
        self._end(turn, heard)

    def _go_on(self) -> None:
        """What interrupted was a noise: answer again if nothing was heard of the answer."""
        self._cancel_prefill()
        self._endpoint = None
        unheard = self._unheard()
        if unheard is None:
            return
        turn = self._turn = replace(unheard, is_interrupted=False, heard=None, reply=None)
        self.line.mouth.begin()
        turn.reply = self.conversation.regenerate(unheard.question_id).detach()
        self._follow(turn)

    def _end(self, turn: _Turn, heard: str) -> None:
        reply = turn.reply
        assert reply is not None
        turn.heard = heard
        first_sound_s = self.line.mouth.first_sound_s
        timings = replace(
            turn.timings,
            first_token_s=turn.first_token_s - turn.endpoint_s if turn.first_token_s is not None else None,
            first_sound_s=first_sound_s - turn.endpoint_s if first_sound_s is not None else None,
            prefilled=reply.usage.n_reused,
            prompt=reply.usage.n_prompt,
        )
        if not turn.is_interrupted:
            self._turn = None
        self._events.add(ReplyDone(heard, reply.node.id if reply.node is not None else None, timings))


def open_talk(conversation: Conversation, **options: Unpack[TalkOptions]) -> Talk:
    """Open a talk in a conversation; see `edge.Conversation.talk`. Models that are missing are fetched.

    Args:
        conversation: of a loaded model.
        options: see `TalkOptions`.

    Raises:
        UsageError: there is no such stage, or none for the language.
        BackendUnavailableError: a package of the extra "voice" is missing.
        ModelNotFoundError: a voice model is not here, and edge is offline.
        DownloadError, ChecksumError, StorageError: one could not be fetched.
    """
    import msgspec

    from edge.config import load_settings

    settings = options.get("settings") or load_settings()
    if "hands_free" in options:
        voice = msgspec.structs.replace(settings.voice, hands_free=options["hands_free"])
        settings = msgspec.structs.replace(settings, voice=voice)
    stages = options.get("stages") or _open_stages(settings, options)
    return Talk(
        conversation,
        stages,
        settings,
        clock=options.get("clock", time.monotonic),
        is_threaded=options.get("is_threaded", True),
    )


def _open_stages(settings: Settings, options: TalkOptions) -> Stages:
    from edge_voice.models import fetch_for_talk
    from edge_voice.opening import open_stages

    notices = fetch_for_talk(settings, options.get("on_fetch"))
    return open_stages(settings, on_measure=options.get("on_measure"), notices=notices)
