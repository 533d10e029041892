"""Settings made before llama.cpp is loaded, and what its failures mean."""

from __future__ import annotations

import pytest

from edge.backends.llamacpp import library
from edge.backends.llamacpp.library import limit_spinning
from edge.errors import BackendUnavailableError, EdgeError, ModelFileError, ModelTooLargeError


@pytest.mark.parametrize(("platform", "policy"), [("linux", "ACTIVE"), ("darwin", "PASSIVE")])
def test_threads_wait_for_a_bounded_time(platform: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.sys, "platform", platform)
    environ = {"HOME": "/home/me"}
    limit_spinning(environ)
    assert environ["OMP_WAIT_POLICY"] == policy
    # GNU's library spins 30,000,000,000 times for ACTIVE, 300,000 by default and not at all for PASSIVE.
    assert 1_000 <= int(environ["GOMP_SPINCOUNT"]) < 100_000


@pytest.mark.parametrize("decided", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "0"}])
def test_what_the_user_decided_stays(decided: dict[str, str]) -> None:
    environ = dict(decided)
    limit_spinning(environ)
    assert environ == decided


@pytest.mark.parametrize(
    "said",
    [
        "error loading model: mmap failed: Cannot allocate memory",
        "error loading model: std::bad_alloc",
        "failed to allocate buffer of size 188743680",
        "mmap failed: Out of memory",
        "libllama.so: failed to map segment from shared object",
    ],
)
def test_too_little_memory_is_not_a_damaged_file(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "recent_log", lambda: said)
    error = library.load_failure("load the weights", "m.gguf", "llama")
    assert isinstance(error, ModelTooLargeError)
    assert "ownload" not in error.hint
    assert said in error.message


def test_a_damaged_file_is_not_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "recent_log", lambda: "error loading model: missing tensor 'output_norm.weight'")
    assert isinstance(library.load_failure("load the weights", "m.gguf", "llama"), ModelFileError)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("libllama.so: failed to map segment from shared object: Cannot allocate memory", ModelTooLargeError),
        ("libgomp.so.1: cannot allocate memory in static TLS block", BackendUnavailableError),
        ("libllama.so: cannot open shared object file", BackendUnavailableError),
    ],
)
def test_a_library_for_which_there_is_no_memory(said: str, error: type[EdgeError], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(said)

    monkeypatch.setattr(library, "_library", None)
    monkeypatch.setattr(library.importlib, "import_module", fail)
    with pytest.raises(error) as caught:
        library.load_library()
    assert type(caught.value) is error
