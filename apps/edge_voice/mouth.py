"""The speaking half: a reply becomes sound sentence by sentence, in one queue, and it is known how much of it was heard."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge.errors import CancelledError, EdgeError, SoundError
from edge_voice.events import DeviceBack, DeviceLost, Notice, Speaking
from edge_voice.heard import Script

if TYPE_CHECKING:
    from edge_voice.events import VoiceEvent
    from edge_voice.stages import Samples, Speaker, Splitter, Voice, Wording

__all__ = ["Mouth"]

_AHEAD_S = 8.0  # of sound made before it is heard: enough against gaps, and little is lost at an interruption
_POLL_S = 0.04


class Mouth:
    """Speaks one reply at a time. All methods may be called by any thread.

    Args:
        voice: makes the sound; used by one thread, but for its `cancel`. None leaves every reply to be read.
        open_speaker: opens the loudspeaker when it is first needed, and again when it was lost.
        splitter: makes what splits a reply into pieces.
        wording: says a piece in words.
        language: of the replies.
        on_event: takes the events.
        on_done: called with the heard text of a reply that was spoken to its end.
        on_played: see `Speaker.on_played`.
        clock: seconds.
        ahead_s: sound made before it is heard, in seconds.
    """

    def __init__(
        self,
        voice: Voice | None,
        open_speaker: Callable[[], Speaker],
        splitter: Callable[[], Splitter],
        wording: Wording,
        on_event: Callable[[VoiceEvent], None],
        clock: Callable[[], float],
        *,
        language: str = "en",
        on_done: Callable[[str], None] = lambda text: None,
        on_played: Callable[[Samples, float], None] | None = None,
        ahead_s: float = _AHEAD_S,
    ) -> None:
        self._voice, self._open_speaker, self._splitter, self._wording = voice, open_speaker, splitter, wording
        self._language, self._emit, self._clock = language, on_event, clock
        self._on_done, self._on_played, self._ahead_s = on_done, on_played, ahead_s
        self._speaker: Speaker | None = None
        self._lost = ""  # why there is no loudspeaker
        self._script: Script | None = None
        self._pieces: Splitter = splitter()
        self._changed = threading.Condition()
        self._is_closed = False
        self.first_sound_s: float | None = None
        """When the first sound of the newest reply was handed to the loudspeaker; None before."""
        self._threads = [
            threading.Thread(target=self._make, name="edge-voice-mouth", daemon=True),
            threading.Thread(target=self._watch, name="edge-voice-watch", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_speaking(self) -> bool:
        """Return whether a reply has begun that is not spoken to its end."""
        return self._script is not None

    @property
    def is_sounding(self) -> bool:
        """Return whether the loudspeaker plays, gaps between two sentences included."""
        if self._script is not None and self.first_sound_s is not None:
            return True
        try:
            return self._speaker is not None and self._speaker.waiting_s > 0
        except SoundError:
            return False

    def begin(self) -> None:
        """Begin a reply; one that is being spoken is stopped."""
        self.stop()
        with self._changed:
            self.first_sound_s = None
            self._script, self._pieces = Script(), self._splitter()
            self._script.is_mute = self._voice is None

    def add(self, text: str) -> None:
        """Speak more of the reply. Does nothing after `stop`."""
        with self._changed:
            if self._script is not None:
                self._script.text += text
                self._queue(self._pieces.add(text))

    def end(self) -> None:
        """Say that the reply has no more text."""
        with self._changed:
            if self._script is not None:
                self._queue(self._pieces.end())
                self._script.is_complete = True

    def _queue(self, pieces: list[str]) -> None:
        script = self._script
        if script is not None:
            for piece in pieces:
                script.append(piece, self._wording(piece, self._language))
            self._changed.notify_all()

    def stop(self) -> str:
        """Fall silent at once, drop the rest of the reply, and return what was heard of it, in whole words."""
        with self._changed:
            script, self._script = self._script, None
            if self._voice is not None:
                self._voice.cancel()
            speaker = self._speaker
            if script is None:
                return ""
            try:
                waiting_s = speaker.stop() if speaker is not None else 0.0
            except SoundError:
                waiting_s = 0.0
            self._changed.notify_all()
            # Without a loudspeaker the reply was there to be read.
            return script.text if script.is_mute else script.heard(script.queued_s - waiting_s)

    def close(self) -> None:
        """Stop, and free the loudspeaker and the threads."""
        self.stop()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        if self._speaker is not None:
            self._speaker.close()
            self._speaker = None

    # The thread that makes sound

    def _make(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or (self._script is not None and self._script.has_next))
                if self._is_closed:
                    return
                script = self._script
            if script is not None:
                self._say_next(script)

    def _say_next(self, script: Script) -> None:
        """Make the sound of the next piece, and queue it."""
        line, voice = script.next(), self._voice
        try:
            if voice is not None and line.spoken and not script.is_mute:
                for sound in voice.speak(line.spoken):
                    if not self._play(script, sound, voice.rate):
                        break
        except CancelledError:
            pass  # stopped: nothing of it is played any more
        except SoundError as error:
            self._lose(script, error)
        except EdgeError as error:
            script.is_mute = True
            self._emit(Notice(f"The reply is not spoken. {error}"))
        except Exception as error:  # noqa: BLE001 (of an engine; what it raises must not end the thread)
            script.is_mute = True
            self._emit(Notice(f"The reply is not spoken: the voice failed with {error!r}. Choose another one: voice.voice"))
        with self._changed:
            script.finish(line)
            self._changed.notify_all()

    def _play(self, script: Script, sound: Samples, rate: int) -> bool:
        """Queue sound once there is room, and return False if the reply was stopped."""
        while self._script is script and not self._is_closed:
            speaker = self._speaker or self._open()
            if speaker.waiting_s <= self._ahead_s:
                with self._changed:
                    if self._script is not script:
                        return False
                    if self.first_sound_s is None:
                        self.first_sound_s = self._clock()
                    speaker.play(sound, rate)
                    script.add_sound(len(sound) / rate)
                return True
            with self._changed:
                self._changed.wait(_POLL_S)
        return False

    def _open(self) -> Speaker:
        speaker = self._open_speaker()
        speaker.on_played = self._on_played
        self._speaker = speaker
        if self._lost:
            self._lost = ""
            self._emit(DeviceBack("speaker", speaker.name))
        return speaker

    def _lose(self, script: Script, error: SoundError) -> None:
        """The loudspeaker is gone: this reply goes on in text, the next one tries again."""
        with self._changed:
            speaker, self._speaker = self._speaker, None
            script.is_mute = True
        if speaker is not None:
            speaker.close()
        if not self._lost:
            self._lost = str(error)
            self._emit(DeviceLost("speaker", f"{error} The reply goes on in text."))

    # The thread that watches what is heard

    def _watch(self) -> None:
        told = None
        while True:
            with self._changed:
                if self._script is None:
                    self._changed.wait_for(lambda: self._script is not None or self._is_closed)
                elif not self._is_closed:
                    self._changed.wait(_POLL_S)
                if self._is_closed:
                    return
            told = self.poll(told)

    def poll(self, told: Speaking | None = None) -> Speaking | None:
        """Emit what is heard now, if that is not `told`, and end a reply that was heard whole; return the newest event."""
        with self._changed:
            script, speaker = self._script, self._speaker
            if script is None:
                return None
            try:
                waiting_s = speaker.waiting_s if speaker is not None else 0.0
            except SoundError as error:
                lost: SoundError | None = error
            else:
                lost = None
                is_done = script.is_spoken and waiting_s <= 0
                now = None if script.is_mute else script.speaking(script.queued_s - waiting_s)
                if is_done:
                    self._script = None
        if lost is not None:
            self._lose(script, lost)
            return told
        if now is not None and now != told:
            self._emit(now)
        if is_done:
            self._on_done(script.text)
        return now or told
