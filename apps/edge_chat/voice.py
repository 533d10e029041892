"""Speech in the chat: a key or an open microphone fills the message box, and replies are spoken as they are written.

The line (`edge_voice.line`) hears and speaks in threads of its own; its events arrive here on the event loop. A partial
transcript is text in the message box, so that read-ahead prefills it as it does typed text; the message then takes the way of
all messages. Whatever fails here is a line on the screen, and the chat goes on in text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from edge.errors import EdgeError
from edge_chat.voice_opening import VoiceOpening, open_line
from edge_chat.widgets.voice_bar import VoiceState
from edge_voice import events

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_chat.replies import ReplyRun
    from edge_chat.screens.chat import ChatScreen
    from edge_voice.events import VoiceEvent
    from edge_voice.line import Line

    OpenLine: TypeAlias = Callable[[Settings, Callable[[VoiceEvent], None], Callable[[str], None], VoiceOpening], Line]

__all__ = ["VoiceDesk"]


class _Unheard(NamedTuple):
    """A message whose reply was interrupted before anything of it was heard."""

    conversation_id: str
    node_id: int
    text: str


class VoiceDesk:
    """Voice on one chat screen.

    Attributes:
        open_line: makes the line, as `edge_chat.voice_opening.open_line`, from which tests differ.
        state: what the bar shows.
    """

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._line: Line | None = None
        self._opening: asyncio.Task[None] | None = None
        self._attempt: VoiceOpening | None = None  # of `_opening`, while that runs
        self._typed = ""  # in the message box before speech began
        self._run: ReplyRun | None = None  # being spoken
        self._cutting: asyncio.Task[None] | None = None
        self._unheard: _Unheard | None = None
        self.open_line: OpenLine = open_line
        self.state = VoiceState()

    @property
    def is_on(self) -> bool:
        """Return whether replies are spoken, and the key listens."""
        return self._line is not None

    # Commands

    async def switch(self, on: bool, hands_free: bool | None = None) -> None:
        """Turn voice on or off; hands_free says whether it listens all the time, None leaves that.

        Raises:
            EdgeError: it cannot be turned on: no package, no model.
        """
        if not on:
            await self.close()
            return
        if self._line is None:
            await self._open_once()
        if self._line is not None:
            if hands_free is not None:
                self._line.hands_free = hands_free
            self._change(is_hands_free=self._line.hands_free)

    async def talk(self) -> None:
        """Listen for one message; while it is heard, end it. A reply that is being spoken is interrupted."""
        if self._line is None:
            await self.switch(True)
        line = self._line
        if line is None:
            return
        if self.state.is_listening and not line.hands_free:
            await asyncio.to_thread(line.release)
        else:
            self._screen.set_focus(self._screen.composer.input)
            await asyncio.to_thread(line.listen)

    def hush(self) -> bool:
        """Stop speaking and listening, as Esc does, and return whether there was either. The text of the reply stays."""
        line = self._line
        if line is None:
            return self._cancel_opening()
        was_busy = line.mouth.is_speaking or (self.state.is_listening and not line.hands_free)
        line.mouth.stop()
        self._run = None
        if self.state.is_listening and not line.hands_free:
            line.cancel()
            self._screen.composer.dictate(self._typed)
        self._change(sentence="")
        return was_busy

    async def close(self) -> None:
        """Turn voice off, and free the devices."""
        self._cancel_opening()
        if self._opening is not None:
            await asyncio.wait([self._opening])
        line, self._line = self._line, None
        if line is not None:
            await asyncio.to_thread(line.close)
        self._run = None
        self._show(VoiceState())

    def follow(self, run: ReplyRun) -> None:
        """Speak a reply while it is written."""
        line = self._line
        if line is None or run.conversation_id != self._screen.controller.active_id:
            return
        self._run = run
        line.mouth.begin()
        run.on_text = line.mouth.add
        run.task.add_done_callback(lambda _: line.mouth.end() if self._run is run else None)

    # Events

    async def _open_once(self) -> None:
        """Open the line, or wait until an attempt that runs has done so."""
        if self._opening is not None and not self._opening.done() and self._attempt is None:
            await asyncio.wait([self._opening])  # it was cancelled, and ends soon
        if self._opening is None or self._opening.done():
            self._show(VoiceState(phase="opening"))
            self._attempt = self._new_attempt()
            self._opening = asyncio.create_task(self._open(self._attempt))
        await asyncio.shield(self._opening)

    def _new_attempt(self) -> VoiceOpening:
        loop, host = asyncio.get_running_loop(), self._screen.app.host

        def show(step: str) -> None:
            if self._attempt is attempt and self._screen.is_attached:
                self._show(VoiceState(phase="opening", step=step))

        def say(step: str) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(show, step)

        attempt = VoiceOpening(say, lambda: host.state.phase == "loading")
        return attempt

    def _cancel_opening(self) -> bool:
        """Give up opening the line, and return whether it was being opened."""
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return False
        attempt.cancel()
        self._show(VoiceState())
        return True

    async def _open(self, attempt: VoiceOpening) -> None:
        loop = asyncio.get_running_loop()

        def take(event: VoiceEvent) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._take, event)

        try:
            line = await asyncio.to_thread(self.open_line, self._screen.app.settings, take, self._spoken_in(loop), attempt)
        except EdgeError:
            if attempt.is_cancelled:
                return  # `_cancel_opening` has shown that
            self._attempt = None
            self._show(VoiceState())
            raise
        if attempt.is_cancelled:
            await asyncio.to_thread(line.close)
            return
        self._attempt, self._line = None, line
        self._show(VoiceState(phase="ready"))

    def _take(self, event: VoiceEvent) -> None:
        if self._line is None or not self._screen.is_attached:
            return
        composer = self._screen.composer
        match event:
            case events.Listening(is_on=is_on):
                self._change(is_listening=is_on, is_hearing=False, level_db=-90.0)
            case events.Level(rms_db=level_db):
                self._change(level_db=level_db)
            case events.SpeechStarted():
                self._typed = composer.text.strip()
                self._change(is_hearing=True)
            case events.Partial(text=text):
                composer.dictate(_joined(self._typed, text))
                self._screen.read_ahead.touch(0.0)
            case events.Endpoint():
                self._change(is_hearing=False)
            case events.Final(text=text):
                self._screen.run_guarded(self._send, text)
            case events.Unclear():
                composer.dictate(self._typed)
                self._change(is_hearing=False)
                self._screen.run_guarded(self._go_on)
            case events.Speaking(sentence=sentence):
                self._change(sentence=sentence)
            case events.Interrupted(heard=heard):
                self._interrupted(heard)
            case events.DeviceLost(message=message) | events.Notice(text=message):
                self._screen.tell(message)
            case events.DeviceBack(name=name):
                self._screen.tell(f"{name} works again.")

    def _spoken_in(self, loop: asyncio.AbstractEventLoop) -> Callable[[str], None]:
        def spoken() -> None:
            self._run = None
            self._change(sentence="")

        def say(text: str) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(spoken)

        return say

    async def _send(self, text: str) -> None:
        """Send what was said, behind what was typed. It takes the place of a message whose reply nobody heard."""
        if self._cutting is not None:
            await asyncio.wait([self._cutting])
        controller, composer = self._screen.controller, self._screen.composer
        said = _joined(self._typed, text)
        unheard, self._unheard = self._unheard, None
        if unheard is not None and unheard.conversation_id == controller.active_id and controller.editing is None:
            controller.editing = unheard.node_id
            said = f"{unheard.text} {said}"
        composer.submit(said)

    async def _go_on(self) -> None:
        """What interrupted was a noise: answer again if nothing was heard of the answer."""
        if self._cutting is not None:
            await asyncio.wait([self._cutting])
        unheard, self._unheard = self._unheard, None
        if unheard is not None and unheard.conversation_id == self._screen.controller.active_id:
            await self._screen.controller.sending.answer_again(unheard.node_id)

    def _interrupted(self, heard: str) -> None:
        run, self._run = self._run, None
        self._change(sentence="")
        if run is not None:
            run.stop()
            self._cutting = asyncio.create_task(self._screen.guard(self._cut, run, heard))

    async def _cut(self, run: ReplyRun, heard: str) -> None:
        """Cut what is saved of a reply to what was heard."""
        await run.has_ended.wait()
        sending = self._screen.controller.sending
        node = run.reply.node if run.reply is not None else None
        last = None
        if node is not None:
            length = len(node.content) - len(run.text) + len(heard)
            conversation = sending.conversation(run.conversation_id)
            last = await asyncio.to_thread(conversation.shorten, node.id, length)
        if run.conversation_id != self._screen.controller.active_id:
            return
        await sending.reload()
        page = self._screen.controller.page
        last = last or (page.nodes[-1] if page is not None and page.nodes else None)
        if last is not None and last.role == "user":
            self._unheard = _Unheard(run.conversation_id, last.id, last.content)

    # The bar

    def _change(self, **changes: object) -> None:
        self._show(self.state.with_changes(**changes))

    def _show(self, state: VoiceState) -> None:
        if state != self.state:
            self.state = state
            self._screen.show_voice(state)


def _joined(typed: str, said: str) -> str:
    return f"{typed} {said}" if typed else said
