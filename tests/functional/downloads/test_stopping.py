"""Stopping and going on, and several processes at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge.catalog import DownloadProgress, pull, remove
from edge.config import Settings
from edge.errors import ChecksumError, DownloadError
from tests.servers.hub import Hub
from tests.servers.models import REFERENCE, models, partials


def test_stopping_in_the_callback_leaves_something_to_resume(hub: Hub, settings: Settings, model: bytes) -> None:
    def stop(progress: DownloadProgress) -> None:
        if progress.done_bytes > 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(REFERENCE, settings=settings, on_progress=stop)
    assert not models(settings)
    [partial] = partials(settings)
    start = partial.stat().st_size
    assert start > 500_000
    hub.requests.clear()
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model
    assert [request.range_start for request in hub.of("content")] == [start]


def test_a_partial_file_of_another_content_is_found_out(hub: Hub, settings: Settings, model: bytes) -> None:
    """Whatever got into the partial file, the result is right or refused, and the next attempt starts afresh."""
    hub.fail("content", break_after=500_000)
    for _ in range(8):
        hub.fail("content", break_after=0)
    with pytest.raises(DownloadError):
        pull(REFERENCE, settings=settings)
    [partial] = partials(settings)
    partial.write_bytes(b"x" * partial.stat().st_size)
    hub.faults["content"].clear()
    with pytest.raises(ChecksumError):
        pull(REFERENCE, settings=settings)
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model
    # Longer than the file can be: thrown away at once.
    remove(REFERENCE, settings)
    partial.write_bytes(model + b"more")
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model


CHILD = """
import sys
from edge.catalog import pull
from edge.config import load_settings

def show(progress):
    print(progress.phase, progress.done_bytes, flush=True)

artifact = pull(sys.argv[1], settings=load_settings(), on_progress=show)
print("path", artifact.path, flush=True)
"""


def start_child(reference: str = REFERENCE) -> subprocess.Popen[str]:
    root = Path(__file__).parents[3]
    return subprocess.Popen([sys.executable, "-c", CHILD, reference], stdout=subprocess.PIPE, text=True, cwd=root)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_process_that_is_stopped_leaves_something_to_resume(
    hub: Hub, settings: Settings, model: bytes, how: signal.Signals
) -> None:
    hub.fail("content", stall_after=900_000)
    with start_child() as child:
        assert child.stdout
        for line in child.stdout:
            phase, done = line.split()
            if phase == "download" and int(done) >= 900_000:
                break
        child.send_signal(how)
        assert child.wait(60) != 0
    assert not models(settings)
    [partial] = partials(settings)
    assert partial.stat().st_size == 900_000
    hub.requests.clear()
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model
    assert [request.range_start for request in hub.of("content")] == [900_000]


def test_two_processes_that_pull_the_same_model(hub: Hub, settings: Settings, model: bytes) -> None:
    """The second waits for the first, and takes what the first has fetched."""
    second_waits = threading.Event()
    hub.fail("content", wait_for=second_waits)
    with start_child() as first, start_child() as second:
        paths = []
        lines: dict[int, list[str]] = {0: [], 1: []}

        def read(number: int, child: subprocess.Popen[str]) -> None:
            assert child.stdout
            for line in child.stdout:
                lines[number].append(line)
                if line.startswith("wait"):
                    second_waits.set()

        readers = [threading.Thread(target=read, args=item) for item in enumerate((first, second))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(120)
        assert [first.wait(60), second.wait(60)] == [0, 0]
        paths = [output[-1] for output in lines.values()]
    assert second_waits.is_set()
    assert paths[0] == paths[1]
    assert len(hub.of("content")) == 1
    [path] = models(settings)
    assert path.read_bytes() == model


def test_threads_that_pull_the_same_model(hub: Hub, settings: Settings, model: bytes) -> None:
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(pull(REFERENCE, settings=settings).path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 4
    assert len(set(results)) == 1
    assert len(hub.of("content")) == 1
