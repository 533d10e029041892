"""Sound devices through PortAudio: which there are, the one that a setting names, and its errors in plain words."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from edge.errors import BackendUnavailableError, SoundError
from edge.units import one_line
from edge_voice.registry import EXTRA_HINT

__all__ = ["Device", "Direction", "find_device", "list_devices", "load_portaudio", "quiet", "rescan", "sound_error"]

Direction: TypeAlias = Literal["input", "output"]

_WORDS: dict[Direction, str] = {"input": "microphone", "output": "loudspeaker"}
_DOCTOR = "Check your devices with: edge voice doctor"
_INSTALL = {
    "linux": "Install it: sudo apt install libportaudio2 (or the portaudio package of your system)",
    "darwin": "Install it again: pip install --force-reinstall sounddevice",
}
# PortAudio's numbers; its own words name neither the device nor a remedy.
_REASONS = {
    -9985: ("is in use by another program", "Close the program that uses it, or choose another device: edge voice doctor"),
    -9996: ("is not there any more", _DOCTOR),
    -9997: ("does not work at any sample rate that was tried", _DOCTOR),
    -9998: ("does not have a channel that can be used", _DOCTOR),
}


@dataclass(frozen=True, slots=True)
class Device:
    """A device in one direction.

    Attributes:
        index: PortAudio's number, which settings may name.
        name: for people, one line.
        system: sound system that it belongs to, such as "ALSA" or "Core Audio".
        channels: that it has at most in this direction.
        rate: samples a second that it prefers.
        is_default: the system's choice.
    """

    index: int
    name: str
    system: str
    channels: int
    rate: int
    is_default: bool


def load_portaudio() -> Any:
    """Return the module sounddevice.

    Raises:
        BackendUnavailableError: it is not installed.
        SoundError: it finds no PortAudio library, or PortAudio cannot start.
    """
    with quiet():
        try:
            import sounddevice
        except ImportError as error:
            raise BackendUnavailableError("Sound needs the package sounddevice, which is not installed.", EXTRA_HINT) from error
        except OSError as error:
            hint = _INSTALL.get(sys.platform, _DOCTOR)
            raise SoundError("The library PortAudio, which plays and records sound, is not on this system.", hint) from error
        except Exception as error:  # sounddevice.PortAudioError: its initialisation happens at import
            raise SoundError(f"PortAudio cannot start: {one_line(str(error))}.", _DOCTOR) from error
    return sounddevice


def list_devices(direction: Direction) -> list[Device]:
    """Return the devices of a direction, in PortAudio's order.

    Raises:
        BackendUnavailableError, SoundError: as `load_portaudio`.
    """
    sounddevice = load_portaudio()
    with quiet():
        found, systems = sounddevice.query_devices(), sounddevice.query_hostapis()
        chosen = sounddevice.default.device[direction]
        if chosen is None or chosen < 0:
            chosen = next(
                (one[f"default_{direction}_device"] for one in systems if one[f"default_{direction}_device"] >= 0), -1
            )
    return [
        Device(
            index=one["index"],
            name=one_line(one["name"]),
            system=systems[one["hostapi"]]["name"],
            channels=one[f"max_{direction}_channels"],
            rate=round(one["default_samplerate"]),
            is_default=one["index"] == chosen,
        )
        for one in found
        if one[f"max_{direction}_channels"] > 0
    ]


def find_device(direction: Direction, wanted: str | None = None) -> Device:
    """Return the device that a setting names.

    Args:
        direction: "input" or "output".
        wanted: its number, its name, or a part of its name that no other has; None is the system's choice.

    Raises:
        BackendUnavailableError, SoundError: as `load_portaudio`; there is no such device, or none at all.
    """
    word = _WORDS[direction]
    devices = list_devices(direction)
    if not devices:
        raise SoundError(f"This machine has no {word}.", "Connect one, and try again. On a server there may be none at all.")
    if wanted is None:
        return next((one for one in devices if one.is_default), devices[0])
    text = wanted.strip().lower()
    exact = [one for one in devices if text == str(one.index) or text == one.name.lower()]
    found = exact or [one for one in devices if text and text in one.name.lower()]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{one.index} ({one.name})" for one in (found or devices)[:8])
    if not found:
        raise SoundError(f"There is no {word} named {wanted!r}.", f"There are: {names}.")
    raise SoundError(f"The name {wanted!r} fits {len(found)} devices.", f"Name one by its number: {names}.")


def sound_error(error: Exception, direction: Direction, name: str) -> SoundError:
    """Return an error of PortAudio in plain words.

    Args:
        error: what sounddevice raised.
        direction, name: of the device.
    """
    number = error.args[1] if len(error.args) > 1 else None
    reason, hint = _REASONS.get(number, ("", _DOCTOR)) if isinstance(number, int) else ("", _DOCTOR)
    if not reason:
        system = error.args[2][2] if len(error.args) > 2 and error.args[2] else ""
        reason = f"cannot be opened: {one_line(str(system or error.args[0] if error.args else error))}"
    return SoundError(f"The {_WORDS[direction]} {name} {reason}.", hint)


def rescan() -> None:
    """Have PortAudio look for devices again, which it otherwise does at its start alone. No stream may be open.

    Raises:
        BackendUnavailableError, SoundError: as `load_portaudio`.
    """
    sounddevice = load_portaudio()
    with quiet():
        sounddevice._terminate()
        sounddevice._initialize()


_quiet_lock = threading.Lock()
_quiet_depth = 0
_loud: int | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep PortAudio and ALSA from writing over the screen: on Linux, C's `stderr` leads nowhere meanwhile.

    Python's sys.stderr, and whatever else writes to the file descriptor, are not affected: the chat draws on it.
    """
    if sys.platform != "linux":
        yield
        return
    global _quiet_depth
    with _quiet_lock:
        _quiet_depth += 1
        if _quiet_depth == 1:
            _point_stderr(away=True)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if not _quiet_depth:
                _point_stderr(away=False)


def _point_stderr(*, away: bool) -> None:
    """Exchange libc's variable `stderr`. A C library without it stays as loud as it is."""
    global _loud
    try:
        libc = ctypes.CDLL(None)
        pointer = ctypes.c_void_p.in_dll(libc, "stderr")
    except (OSError, ValueError):
        return
    if away:
        libc.fopen.restype = ctypes.c_void_p
        nowhere = _nowhere(libc)
        if nowhere:
            _loud, pointer.value = pointer.value, nowhere
    elif _loud is not None:
        _loud, pointer.value = None, _loud


_null_file: int | None = None


def _nowhere(libc: Any) -> int | None:
    """Return C's FILE of the null device, which stays open: a thread of PortAudio may be about to write to it."""
    global _null_file
    if _null_file is None:
        _null_file = libc.fopen(b"/dev/null", b"w")
    return _null_file
