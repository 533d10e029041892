"""Both halves on the same sound devices: who may speak when, interruptions, lost devices. It knows no conversation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.errors import EdgeError, SoundError, StorageError
from edge_voice.ear import Ear
from edge_voice.events import (
    DeviceBack,
    DeviceLost,
    Final,
    Interrupted,
    Listening,
    Notice,
    SpeechStarted,
    Unclear,
    VoiceEvent,
)
from edge_voice.keeping import Keeper
from edge_voice.levels import LevelMeter
from edge_voice.mouth import Mouth
from edge_voice.stages import BLOCK, RATE

if TYPE_CHECKING:
    from edge.config.schema import VoiceSettings
    from edge_voice.stages import (
        Block,
        EchoCanceller,
        EndpointModel,
        Microphone,
        Recogniser,
        Samples,
        Speaker,
        Splitter,
        Vad,
        Voice,
        WakeWord,
        Wording,
    )

__all__ = ["Line", "Stages"]

_READ_S = 0.1
_RETRY_S = 2.0  # between two attempts to open a lost device
_NOTHING_S = 10.0  # without speech, after which the key has to be pressed again
_DEAF_AFTER_S = 0.25  # in half-duplex: the room still sounds
_AWAKE_S = 10.0  # after the wake word, and after a reply, in which it need not be said again


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The stages of a line, opened. `close` ends all that hold something.

    Attributes:
        voice: None where replies are only read.
        open_microphone, open_speaker: open a device, and again when it was lost.
        splitter: makes what splits a reply into pieces to speak.
        wording: says such a piece in words.
        wake: waits for a word; None for none.
        notices: what the user should know about the choice.
    """

    vad: Vad
    endpoint: EndpointModel
    recogniser: Recogniser
    voice: Voice | None
    echo: EchoCanceller
    open_microphone: Callable[[], Microphone]
    open_speaker: Callable[[], Speaker]
    splitter: Callable[[], Splitter]
    wording: Wording
    wake: WakeWord | None = None
    notices: tuple[str, ...] = ()


class Line:
    """Hears and speaks. All methods may be called by any thread, and events come from several.

    Args:
        stages: opened; the line closes them.
        settings: of voice.
        on_event: takes the events. It must be quick, and may call the line.
        on_spoken: called with the text of a reply that was spoken to its end.
        clock: seconds, the same as in `Block.at_s`.
        is_threaded: False leaves calling `step` to a test, and transcribes within it.

    Attributes:
        mouth: speaks replies.
        n_lost: samples that the microphone dropped.
    """

    def __init__(
        self,
        stages: Stages,
        settings: VoiceSettings,
        on_event: Callable[[VoiceEvent], None],
        *,
        on_spoken: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
        is_threaded: bool = True,
    ) -> None:
        self._stages, self._on_event, self._clock = stages, on_event, clock
        self._settings = settings
        self._keeper = Keeper(settings.keep_audio) if settings.keep_audio is not None else None
        self.ear = Ear(
            stages.vad,
            stages.endpoint,
            stages.recogniser,
            settings,
            self._heard,
            clock,
            on_utterance=self._keep if self._keeper is not None else None,
            is_threaded=is_threaded,
        )
        self.mouth = Mouth(
            stages.voice,
            stages.open_speaker,
            stages.splitter,
            stages.wording,
            on_event,
            clock,
            language=settings.language or "en",
            on_done=on_spoken,
            on_played=stages.echo.played if stages.echo.is_full_duplex else None,
        )
        self.n_lost = 0
        self._is_hands_free = settings.hands_free
        self._listens_once = self._is_closed = self._is_lost = False
        self._asked_s = 0.0
        self._deaf_until_s = self._awake_until_s = float("-inf")
        self._microphone: Microphone | None = None
        self._meter = LevelMeter()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="edge-voice-line", daemon=True) if is_threaded else None
        for text in stages.notices:
            on_event(Notice(text))
        if self._thread is not None:
            self._thread.start()

    # What an app asks for

    @property
    def is_listening(self) -> bool:
        """Return whether the microphone is open."""
        return self._microphone is not None

    @property
    def hands_free(self) -> bool:
        """Return whether it listens all the time. May be set."""
        return self._is_hands_free

    @hands_free.setter
    def hands_free(self, on: bool) -> None:
        with self._changed:
            self._is_hands_free = on
            self._changed.notify_all()

    def listen(self) -> None:
        """Hear one utterance; a reply that is being spoken is interrupted."""
        self.interrupt()
        with self._changed:
            self._asked_s = self._clock()
            self._listens_once = True
            self._changed.notify_all()

    def release(self) -> None:
        """End the utterance that `listen` began; stop listening if nothing was said."""
        if self.ear.is_hearing:
            self.ear.release()
        else:
            self._stop_once()

    def cancel(self) -> None:
        """Stop what `listen` began, and drop what was heard."""
        self.ear.forget()
        self._stop_once()

    def interrupt(self) -> bool:
        """Fall silent, as if the user had spoken, and return whether a reply was being spoken."""
        began_s = self._clock()
        if not self.mouth.is_speaking:
            return False
        self._interrupted(began_s)
        return True

    def close(self) -> None:
        """Fall silent, stop listening, and end threads and stages."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self.mouth.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._close_microphone()
        self.ear.close()
        self._stages.echo.close()

    # The thread of the microphone

    @property
    def _wants(self) -> bool:
        return (self._is_hands_free or self._listens_once) and not self._is_closed

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wants or self._microphone is not None or self._is_closed)
                if self._is_closed:
                    return
            if not self.step():
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed, _RETRY_S)

    def step(self) -> bool:
        """Take the next block, opening or closing the microphone as needed; return False if there is none to be opened."""
        if not self._wants:
            self._close_microphone()
            return True
        try:
            microphone = self._microphone or self._open_microphone()
            block = microphone.read(_READ_S)
        except SoundError as error:
            self._lose_microphone(error)
            return False
        except EdgeError as error:
            self._on_event(Notice(str(error)))
            self._stop_once()
            return False
        if block is not None:
            self._take(block)
        return True

    def _take(self, block: Block) -> None:
        if block.n_lost:
            if self.n_lost == 0:
                self._on_event(Notice("The processor is too busy: some sound of the microphone was lost."))
            self.n_lost += block.n_lost
        now_s = block.at_s + BLOCK / RATE
        samples = self._stages.echo.clean(block)
        for event in self._meter.add(samples, self.ear.is_speech):
            self._on_event(event)
        if not self._stages.echo.is_full_duplex:
            if self.mouth.is_sounding:
                self._deaf_until_s = now_s + _DEAF_AFTER_S
            if now_s <= self._deaf_until_s:
                return
        if self._is_hands_free and not self._listens_once and not self._is_awake(block, now_s):
            return
        self.ear.feed(samples, block.at_s)
        if self._listens_once and not self.ear.is_hearing and now_s - self._asked_s > _NOTHING_S:
            self._on_event(Notice("Nothing was heard."))
            self._stop_once()

    def _is_awake(self, block: Block, now_s: float) -> bool:
        """Return whether the wake word was said, if one is asked for."""
        wake = self._stages.wake
        if wake is None:
            return True
        if self.mouth.is_speaking or self.ear.is_hearing or wake.heard(block.samples):
            self._awake_until_s = now_s + _AWAKE_S
        return now_s <= self._awake_until_s

    def _open_microphone(self) -> Microphone:
        was_lost = self._is_lost
        self._microphone = self._stages.open_microphone()
        self._is_lost = False
        self._meter = LevelMeter()
        if was_lost:
            self._on_event(DeviceBack("microphone", self._microphone.name))
        self._on_event(Listening(True))
        return self._microphone

    def _close_microphone(self) -> None:
        microphone, self._microphone = self._microphone, None
        if microphone is not None:
            microphone.close()
            if self._is_closed or not self.ear.is_finishing:
                self.ear.forget()
            self._on_event(Listening(False))

    def _lose_microphone(self, error: SoundError) -> None:
        self._close_microphone()
        self.ear.forget()
        if not self._is_lost:
            self._is_lost = True
            self._on_event(DeviceLost("microphone", str(error)))
        self._stop_once()

    def _stop_once(self) -> None:
        with self._changed:
            self._listens_once = False
            self._changed.notify_all()

    # What the ear says

    def _heard(self, event: VoiceEvent) -> None:
        if isinstance(event, SpeechStarted) and self.mouth.is_speaking:
            self._interrupted(event.at_s)
        self._on_event(event)
        if isinstance(event, (Final, Unclear)) and self._listens_once:
            self._stop_once()

    def _keep(self, sound: Samples) -> None:
        try:
            if self._keeper is not None:
                self._keeper.keep(sound)
        except StorageError as error:
            self._keeper = None
            self._on_event(Notice(f"What was said is not kept any more. {error}"))

    def _interrupted(self, began_s: float) -> None:
        heard = self.mouth.stop()
        self._on_event(Interrupted(heard, began_s, self._clock() - began_s))
