"""Real sound for tests of voice."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.virtual_sound import VirtualSound, why_no_sound


@pytest.fixture
def virtual_sound(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualSound]:
    """A private PulseAudio, which this process and its children use; skipped with the reason where there can be none."""
    reason = why_no_sound()
    if reason:
        pytest.skip(reason)
    from edge_voice.devices import rescan

    with tempfile.TemporaryDirectory(prefix="edge-sound-") as folder, VirtualSound(Path(folder)) as sound:
        for name, value in sound.env.items():
            monkeypatch.setenv(name, value)
        rescan()
        yield sound
        rescan()
