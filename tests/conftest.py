"""Fixtures of every test: a home of its own, and the real model where a test asks for it."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.prove import IS_WHOLE, left_to_prove
from tests.virtual_sound import VirtualSound, why_no_sound

if not IS_WHOLE:
    # The other worker has the other core: threads of a product as small as here would only wait for each other, and those that
    # wait by spinning take its time. torch was four times slower. Read when numpy, torch and llama.cpp are loaded.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

if TYPE_CHECKING:
    from edge.config import Settings

REAL_MODELS = ("EDGE_TEST_MODEL", "EDGE_TEST_GEMMA", "EDGE_TEST_VOICE")
collect_ignore = ["vendored"]  # they run in a pytest of their own
_home_numbers = itertools.count()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only `make prove` runs, and begin with what is slow: a worker that begins it last is waited for."""
    left_out = set() if IS_WHOLE else set(left_to_prove(items))
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = sorted(
        (item for item in items if item not in left_out), key=lambda item: item.get_closest_marker("slow") is None
    )


# Half a million objects of torch and its like, and of 13,000 tests, are there to stay: looking for garbage among them again and
# again takes a tenth of the collection.
gc.disable()


def pytest_collection_finish() -> None:
    """Keep what the collection made out of every later garbage collection, which takes half a second with torch loaded."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20)


# The same examples in every run, and none of them fails because the machine is busy.
settings.register_profile("edge", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edge")

# What a script starts in the background ignores Ctrl-C, and so would all that the tests start and then interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all homes: `mktemp` would list thousands of folders for each."""
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def own_home(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Point every directory that edge uses into a temporary folder, and drop settings of the person running the tests."""
    home = homes / str(next(_home_numbers))
    home.mkdir()
    for name in list(os.environ):
        if name.startswith(("EDGE_", "HF_", "HUGGING_FACE_", "OLLAMA_")) and name not in REAL_MODELS:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    for name in ("DATA", "CACHE", "MODELS"):
        monkeypatch.setenv(f"EDGE_{name}_DIR", str(home / name.lower()))
    monkeypatch.setenv("EDGE_CONFIG", str(home / "config.toml"))
    yield home


@pytest.fixture
def voice_settings(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with the real models for voice. `make test` pulls them and sets EDGE_TEST_VOICE, the folder of all models.

    Where they are missing the tests that need them fail; they are not skipped, since they are the point.
    """
    from edge.config import load_settings

    folder = os.environ.get("EDGE_TEST_VOICE", "")
    if not Path(folder, "packages").is_dir():
        pytest.fail("EDGE_TEST_VOICE does not name the folder of the models. Run the tests with: make test")
    monkeypatch.setenv("EDGE_MODELS_DIR", folder)
    return load_settings()


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


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The real embedded model, SmolLM2-135M-Instruct Q4_1, 98 MB. `make test` pulls it and sets EDGE_TEST_MODEL.

    Where it is missing the tests that need it fail; they are not skipped, since they are the point.
    """
    path = Path(os.environ.get("EDGE_TEST_MODEL", ""))
    if not path.is_file():
        pytest.fail("EDGE_TEST_MODEL does not name the model file. Run the tests with: make test")
    return path
