"""The canary: children that really die, and the memory of what they died of."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from edge.backends.llamacpp import canary
from edge.backends.llamacpp.canary import library_identity, load_safety
from edge.backends.llamacpp.canary_child import write_model
from edge.device.identity import cpu_identity
from edge.errors import BackendUnavailableError
from edge.formats.gguf import read_header
from edge.plan.receipt import Safety

DEATHS = {
    "SIGSEGV": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "SIGILL": "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
    "code 1 (RuntimeError: no such kernel)": "raise RuntimeError('no such kernel')",
    "code 3": "import sys; sys.exit(3)",
}
HANG = "import threading; threading.Event().wait()"
WELL = "pass"


class Children:
    """Counts the children it hands out; `fast` runs with extra buffers, `plain` without."""

    def __init__(self, fast: str, plain: str = WELL) -> None:
        self.scripts = {True: fast, False: plain}
        self.started: list[bool] = []

    def __call__(self, model: Path, use_extra_buffers: bool) -> list[str]:
        assert model.is_file()
        self.started.append(use_extra_buffers)
        return [sys.executable, "-I", "-c", self.scripts[use_extra_buffers]]


def ask(folder: Path, children: Callable[[Path, bool], list[str]], **changes: object) -> Safety:
    values: dict[str, object] = {"library": "lib 1", "cpu": "cpu 1", "command": children, **changes}
    return load_safety(folder, **values)  # type: ignore[arg-type]


def test_the_real_library_survives_or_is_tamed(tmp_path: Path) -> None:
    safety = load_safety(tmp_path)
    assert bool(safety.note) != safety.use_extra_buffers
    assert load_safety(tmp_path) == safety


def test_the_answer_is_found_out_once(tmp_path: Path) -> None:
    children = Children(WELL)
    for _ in range(3):
        assert ask(tmp_path, children) == Safety(use_extra_buffers=True, note="")
    assert children.started == [True]


@pytest.mark.parametrize("death", DEATHS)
def test_a_child_that_dies_turns_extra_buffers_off_and_the_note_says_why(tmp_path: Path, death: str) -> None:
    children = Children(DEATHS[death])
    safety = ask(tmp_path, children)
    assert not safety.use_extra_buffers
    assert death in safety.note
    assert "make install" in safety.note
    assert "without AMX" not in safety.note
    assert ask(tmp_path, children) == safety
    assert children.started == [True, False]


def test_on_a_cpu_with_amx_the_note_names_the_cure(tmp_path: Path) -> None:
    safety = ask(tmp_path, Children(DEATHS["SIGSEGV"]), cpu="flags: avx512f amx_bf16 amx_tile amx_int8")
    assert "a build without AMX would be faster" in safety.note


def test_a_child_that_hangs_is_ended(tmp_path: Path) -> None:
    def children(model: Path, use_extra_buffers: bool) -> list[str]:
        return [sys.executable, "-I", "-c", HANG] if use_extra_buffers else ["true"]

    safety = ask(tmp_path, children, timeout_s=1.5)
    assert not safety.use_extra_buffers
    assert "no answer within 1.5 s" in safety.note


def test_when_nothing_works_the_user_is_told_what_to_do_and_it_is_not_remembered(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="SIGILL") as caught:
        ask(tmp_path, Children(DEATHS["SIGSEGV"], DEATHS["SIGILL"]))
    assert "make install" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_another_build_or_cpu_is_tried_again_and_neither_forgets_the_other(tmp_path: Path) -> None:
    bad, good = Children(DEATHS["SIGSEGV"]), Children(WELL)
    first = ask(tmp_path, bad)
    assert ask(tmp_path, good, library="lib 2").use_extra_buffers
    assert ask(tmp_path, good, cpu="cpu 2").use_extra_buffers
    assert ask(tmp_path, good) == first
    assert (bad.started, good.started) == ([True, False], [True, True])


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"key": "of another build", "use_extra_buffers": true, "note": ""}',
        b'{"use_extra_buffers": "yes", "note": ""}',
    ],
)
def test_a_damaged_memory_is_measured_again(tmp_path: Path, damage: bytes) -> None:
    children = Children(WELL)
    ask(tmp_path, children)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    assert ask(tmp_path, children).use_extra_buffers
    assert len(children.started) == 2
    assert json.loads(file.read_bytes())["use_extra_buffers"] is True


def test_the_memory_is_private_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "cache"
    ask(folder, Children(WELL))
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_where_nothing_can_be_written_the_answer_still_comes(tmp_path: Path) -> None:
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    children = Children(WELL)
    assert ask(blocked, children).use_extra_buffers
    assert ask(blocked, children).use_extra_buffers
    assert len(children.started) == 2


def test_where_no_child_can_be_started_the_careful_answer_is_given_and_not_kept(tmp_path: Path) -> None:
    safety = ask(tmp_path, lambda model, use_extra_buffers: [str(tmp_path / "no such program")])
    assert not safety.use_extra_buffers
    assert "could not be tried" in safety.note
    assert list(tmp_path.iterdir()) == []


def test_a_frozen_application_does_not_start_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not load_safety(tmp_path).use_extra_buffers


def test_remembering_does_not_import_the_library(tmp_path: Path) -> None:
    ask(tmp_path, Children(WELL))
    script = (
        "import sys; from pathlib import Path; from edge.backends.llamacpp.canary import load_safety; "
        "load_safety(Path(sys.argv[1])); assert not {'llama_cpp', 'numpy'} & set(sys.modules)"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_the_identities_follow_the_files_and_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libllama.so"
    library.write_bytes(b"one")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    first = library_identity()
    library.write_bytes(b"another")
    assert library_identity() != first

    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor: 0\nflags: avx2 amx_tile\ncpu MHz: 1000\n\nprocessor: 1\nflags: avx2\n")
    with_amx = cpu_identity(cpuinfo)
    assert "amx_tile" in with_amx
    cpuinfo.write_text("processor: 0\nflags: avx2 amx_tile\ncpu MHz: 3000\n\nprocessor: 1\nflags: avx2\n")
    assert cpu_identity(cpuinfo) == with_amx
    cpuinfo.write_text("processor: 0\nflags: avx2\n")
    assert cpu_identity(cpuinfo) != with_amx
    assert cpu_identity(tmp_path / "missing")


def test_a_library_that_cannot_be_looked_at_gets_the_careful_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libllama.so").symlink_to(tmp_path / "gone")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    cache = tmp_path / "cache"
    safety = load_safety(cache)
    assert not safety.use_extra_buffers
    assert "could not be tried" in safety.note
    assert not cache.exists()


def test_a_missing_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(BackendUnavailableError, match="missing"):
        library_identity()
    monkeypatch.setattr(canary.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match="not installed"):
        library_identity()


def test_the_tiny_model_is_one_that_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "canary.gguf"
    write_model(path)
    assert read_header(path).architecture == "llama"
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds >= {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ4_NL", "F16", "BF16"}
