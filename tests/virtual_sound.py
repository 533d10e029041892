"""A private PulseAudio with a virtual microphone and a virtual loudspeaker: real sound without a sound card or a screen.

What is played into the sink `mic` is heard by the device "microphone", the system's default; what the device "loudspeaker"
plays can be recorded. PortAudio reaches both through ALSA's plug-in for PulseAudio, as on a desktop.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["VirtualSound", "why_no_sound"]

_ALSA = """
pcm.!default { type pulse }
ctl.!default { type pulse }
pcm.microphone { type pulse device mic.monitor }
pcm.loudspeaker { type pulse device speaker }
"""
_SINKS = ("mic", "speaker")
_RATE = 48_000


def why_no_sound() -> str:
    """Return why there can be no virtual sound here, "" if there can be."""
    missing = [name for name in ("pulseaudio", "pactl", "pacat", "parec") if shutil.which(name) is None]
    if missing:
        return f"virtual sound needs Debian's pulseaudio and pulseaudio-utils: no {', '.join(missing)}"
    try:
        import sounddevice  # noqa: F401
    except (ImportError, OSError) as error:
        return f"virtual sound needs sounddevice and Debian's libportaudio2: {error}"
    if not list(Path("/usr/lib").glob("**/alsa-lib/libasound_module_pcm_pulse.so")):
        return "virtual sound needs Debian's libasound2-plugins"
    return ""


class VirtualSound:
    """The daemon, as a context manager.

    Args:
        folder: empty; of a short path, since sockets lie in it.

    Attributes:
        env: environment in which programs use its devices.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._children = folder, list[subprocess.Popen[bytes]]()
        self._modules: dict[str, str] = {}
        alsa = folder / "asound.conf"
        alsa.write_text(_ALSA)
        self.env = {
            "PULSE_SERVER": f"unix:{folder}/native",
            "PULSE_RUNTIME_PATH": str(folder),
            "PULSE_STATE_PATH": str(folder),
            "PULSE_COOKIE": str(folder / "cookie"),
            "ALSA_CONFIG_PATH": str(alsa),
        }

    def __enter__(self) -> VirtualSound:
        script = self._folder / "default.pa"
        script.write_text(
            f"load-module module-native-protocol-unix socket={self._folder}/native auth-anonymous=1\n"
            f"load-module module-cli-protocol-unix socket={self._folder}/cli\n"
        )
        flags = ["-n", "--daemonize=no", "--use-pid-file=no", "--exit-idle-time=-1", "--realtime=no", "--high-priority=no"]
        try:
            self._start("pulseaudio", *flags, "-F", str(script))
            self._wait_for(lambda: self._call("info", check=False).returncode == 0)
            for sink in _SINKS:
                self.plug_in(sink)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for child in reversed(self._children):
            child.kill()
            child.wait()

    def plug_in(self, sink: str) -> None:
        """Connect "mic" or "speaker"."""
        self._modules[sink] = self._call("load-module", "module-null-sink", f"sink_name={sink}", f"rate={_RATE}").stdout.strip()
        if "mic" in self._modules:
            self._call("set-default-source", "mic.monitor")
        if "speaker" in self._modules:
            self._call("set-default-sink", "speaker")
        # A null sink that nobody plays to sleeps for two seconds at a time, and its monitor with it.
        self._start("pacat", "--playback", f"--device={sink}", "--latency-msec=20", "--raw", "/dev/zero")
        self._wait_for(lambda: self._is_running(sink))

    def _is_running(self, sink: str) -> bool:
        return any(
            f"\t{sink}\t" in line and "RUNNING" in line for line in self._call("list", "short", "sinks").stdout.splitlines()
        )

    def unplug(self, sink: str) -> None:
        """Take "mic" or "speaker" away, and with it the streams that use it, which PulseAudio would move elsewhere."""
        for kind, name in (("source-output", f"{sink}.monitor"), ("sink-input", sink)):
            plural, devices = f"{kind}s", "sources" if kind == "source-output" else "sinks"
            found = [row.split("\t") for row in self._call("list", "short", devices).stdout.splitlines()]
            number = next((row[0] for row in found if row[1] == name), None)
            rows = [row.split("\t") for row in self._call("list", "short", plural).stdout.splitlines()]
            self._command([f"kill-{kind} {row[0]}" for row in rows if row[1] == number])
        self._call("unload-module", self._modules.pop(sink))

    def play(self, samples: NDArray[np.float32], rate: int, *, sink: str = "mic") -> threading.Thread:
        """Play sound, float32, shape (n,) or (n, channels), in the background; return the thread to join."""
        channels = 1 if samples.ndim == 1 else samples.shape[1]
        command = ["pacat", "--playback", f"--device={sink}", "--latency-msec=200", "--raw", "--format=float32le"]
        command += [f"--rate={rate}", f"--channels={channels}"]
        data = np.ascontiguousarray(samples, np.float32).tobytes()
        thread = threading.Thread(target=lambda: subprocess.run(command, input=data, env=self._environment, check=False))
        thread.start()
        return thread

    @contextmanager
    def recording(self, *, sink: str = "speaker", rate: int = 16_000) -> Iterator[list[NDArray[np.float32]]]:
        """Record what a sink plays, within the block; afterwards the list has one array, float32, shape (n,)."""
        command = ["parec", f"--device={sink}.monitor", "--latency-msec=20", "--raw", "--format=float32le", "--channels=1"]
        recorder = subprocess.Popen([*command, f"--rate={rate}"], stdout=subprocess.PIPE, env=self._environment)
        pieces, heard = list[bytes](), list[NDArray[np.float32]]()
        assert recorder.stdout is not None
        stream = recorder.stdout
        reader = threading.Thread(target=lambda: pieces.extend(iter(lambda: stream.read1(65536), b"")))  # type: ignore[attr-defined]
        reader.start()
        try:
            self._wait_for(lambda: bool(pieces))
            yield heard
            time.sleep(0.2)  # what the recorder still holds
        finally:
            recorder.terminate()
            recorder.wait()
            reader.join()
            stream.close()
        data = b"".join(pieces)
        heard.append(np.frombuffer(data[: len(data) // 4 * 4], np.float32))

    @property
    def _environment(self) -> Mapping[str, str]:
        return {**os.environ, **self.env}

    def _start(self, *command: str) -> None:
        nowhere = subprocess.DEVNULL
        self._children.append(subprocess.Popen(command, env=self._environment, stdin=nowhere, stdout=nowhere, stderr=nowhere))

    def _call(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["pactl", *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=check, timeout=20)

    def _command(self, lines: list[str]) -> None:
        if lines:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self._folder / "cli"))
                connection.sendall("".join(f"{line}\n" for line in lines).encode())
                time.sleep(0.2)

    @staticmethod
    def _wait_for(is_true: object, timeout_s: float = 20) -> None:
        assert callable(is_true)
        until = time.monotonic() + timeout_s
        while not is_true():
            if time.monotonic() > until:
                raise TimeoutError("the virtual sound system does not do what it should")
            time.sleep(0.02)
