"""The trial of a model file: children that really die, what is said about it, and the memory of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edge.backends.llamacpp import trial
from edge.backends.llamacpp.trial import KNOWN_GOOD, try_file
from edge.catalog.entries import load_catalog
from edge.config import load_settings
from edge.errors import (
    BackendError,
    BackendUnavailableError,
    CancelledError,
    EdgeError,
    ModelFileError,
    ModelTooLargeError,
)
from edge.plan.receipt import MemoryEstimate, Plan
from tests.contract.entries import make_plan
from tests.tiny_gguf import TOKENS, write_gguf

ASSERTS = """
import os
os.write(1, b"loads it\\n")
os.write(2, b"/build/src/llama-vocab.cpp:2544: GGML_ASSERT(a == b) failed\\n")
os.abort()
"""
WELL = "pass"
WORDS = [*TOKENS[:3], *(f"w{number}" for number in range(256))]


class Children:
    """Counts the children that it hands out."""

    def __init__(self, script: str) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []

    def __call__(self, request: str) -> list[str]:
        self.requests.append(json.loads(request))
        return [sys.executable, "-I", "-c", self.script]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(write_gguf(tmp_path / "tiny.gguf"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def answers(cache: Path) -> list[Path]:
    return list((cache / "llamacpp").glob("*"))


def byte_tokens(writer: gguf.GGUFWriter) -> None:
    writer.add_token_scores([0.0] * 259)


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "a token twice": lambda path: write_gguf(path, tokens=[*TOKENS[:-1], "a"]),
    "SPM without byte tokens": lambda path: write_gguf(path, tokenizer="llama", tokens=WORDS, change=byte_tokens),
    "a weight of a norm in F16": lambda path: write_gguf(path, types={"blk.0.attn_norm.weight": np.dtype(np.float16)}),
    "as many groups of experts as experts": lambda path: write_gguf(
        path, numbers={"expert_count": 4, "expert_used_count": 2, "expert_group_count": 4}
    ),
}
"""Files of which llama.cpp dies in the different stages of a trial."""


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_of_which_llamacpp_dies_is_refused_in_a_sentence(tmp_path: Path, cache: Path, kind: str) -> None:
    path = HOSTILE[kind](tmp_path / "hostile.gguf")
    with pytest.raises(ModelFileError) as first:
        try_file(make_plan(path), cache)
    assert str(path) in first.value.message
    assert "it crashes when it" in first.value.message
    assert "vendor" not in first.value.message, "paths of the machine that built the library"
    assert "Download or convert it again" in first.value.hint
    with pytest.raises(ModelFileError) as again:
        try_file(make_plan(path), cache, command=Children(WELL))
    assert again.value.message == first.value.message


def test_a_good_file_passes_and_is_tried_once(plan: Plan, cache: Path) -> None:
    try_file(plan, cache)
    children = Children(ASSERTS)
    try_file(plan, cache, command=children)
    assert not children.requests
    assert len(answers(cache)) == 1


def test_a_file_that_the_loader_refuses_is_left_to_the_load(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "unknown.gguf", tokenizer="of the future")
    try_file(make_plan(path), cache)
    assert not answers(cache)


def test_the_sentence_names_the_assertion_without_the_builders_folders(plan: Plan, cache: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        try_file(plan, cache, command=Children(ASSERTS))
    assert "it crashes when it loads it (llama-vocab.cpp:2544: GGML_ASSERT(a == b) failed)" in caught.value.message


@pytest.mark.parametrize("change", ["content", "library", "cpu", "kv type"])
def test_another_file_build_cpu_or_kv_type_is_tried_again(
    plan: Plan, cache: Path, change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    children = Children(WELL)
    try_file(plan, cache, command=children)
    if change == "content":
        write_gguf(plan.artifact.path, eps=1e-6)
    elif change == "library":
        monkeypatch.setattr(trial, "library_identity", lambda: "another")
    elif change == "cpu":
        monkeypatch.setattr(trial, "cpu_identity", lambda: "another")
    else:
        plan = make_plan(plan.artifact.path, kv_type_k="q8_0")
    for _ in range(2):
        try_file(plan, cache, command=children)
    assert len(children.requests) == 2


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ModelTooLargeError),
        ("import os; os.write(2, b'terminate called\\n  what():  std::bad_alloc\\n'); os.abort()", ModelTooLargeError),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", BackendError),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", BackendUnavailableError),
        ("import threading; threading.Event().wait()", ModelFileError),
    ],
    ids=["killed", "bad_alloc", "terminated", "illegal instruction", "hangs"],
)
def test_a_death_that_says_nothing_about_the_file_is_told_and_not_remembered(
    plan: Plan, cache: Path, script: str, error: type[EdgeError]
) -> None:
    with pytest.raises(error) as caught:
        try_file(plan, cache, command=Children(script), timeout_s=2.0)
    assert type(caught.value) is error
    assert str(plan.artifact.path) in caught.value.message
    assert caught.value.hint
    assert not answers(cache)
    try_file(plan, cache, command=Children(WELL))


def rwkv(path: Path) -> Path:
    """A vocabulary without the words of a text, in which llama.cpp searches for ever and stores what it finds."""
    return write_gguf(path, tokenizer="rwkv", tokens=WORDS)


def test_a_file_that_fills_the_memory_is_stopped_and_refused(tmp_path: Path, cache: Path) -> None:
    plan = make_plan(rwkv(tmp_path / "rwkv.gguf"), memory=MemoryEstimate(0, 0, 0, 0, available_bytes=16 << 30))
    children = Children(WELL)
    for command in (None, children):
        with pytest.raises(ModelFileError, match="fills the memory"):
            try_file(plan, cache, command=command)
    assert not children.requests


def test_where_memory_may_be_short_a_file_is_not_blamed(tmp_path: Path, cache: Path) -> None:
    plan = make_plan(rwkv(tmp_path / "rwkv.gguf"), memory=MemoryEstimate(0, 0, 0, 0, available_bytes=1 << 30))
    with pytest.raises(ModelTooLargeError):
        try_file(plan, cache)
    assert not answers(cache)


def test_a_file_that_llamacpp_computes_with_for_ever_is_refused(plan: Plan, cache: Path) -> None:
    script = "import os, signal; os.write(1, b'loads it\\n'); os.kill(os.getpid(), signal.SIGXCPU)"
    with pytest.raises(ModelFileError, match="does not come to an end when it loads it"):
        try_file(plan, cache, command=Children(script))
    assert len(answers(cache)) == 1


@pytest.mark.parametrize("script", ["raise RuntimeError", "import sys; sys.exit(2)", "import sys; sys.exit(127)"])
def test_a_child_with_a_fault_of_its_own_does_not_block_the_model(plan: Plan, cache: Path, script: str) -> None:
    try_file(plan, cache, command=Children(script))
    assert not answers(cache)


def test_where_no_child_can_be_started_the_file_is_loaded_untried(
    plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_file(plan, cache, command=lambda request: [str(cache / "no such program")])
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    try_file(plan, cache)
    assert not answers(cache)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"problem": 1}', b"\xff"])
def test_a_damaged_answer_is_found_out_again(plan: Plan, cache: Path, damage: bytes) -> None:
    children = Children(WELL)
    try_file(plan, cache, command=children)
    (file,) = answers(cache)
    file.write_bytes(damage)
    try_file(plan, cache, command=children)
    assert len(children.requests) == 2
    assert json.loads(file.read_bytes()) == {"problem": ""}


def test_a_cache_that_cannot_be_written_does_not_matter(plan: Plan, cache: Path) -> None:
    cache.write_text("a file, not a folder")
    children = Children(WELL)
    for _ in range(2):
        try_file(plan, cache, command=children)
    assert len(children.requests) == 2


def test_progress_says_what_is_done_and_can_stop_it(plan: Plan, cache: Path) -> None:
    seen: list[str] = []

    def report(share: float, stage: str = "loading") -> bool:
        seen.append(stage)
        return len(seen) < 4

    with pytest.raises(CancelledError):
        try_file(plan, cache, report, command=Children("import threading; threading.Event().wait()"))
    assert all(stage.startswith("checking") for stage in seen)
    assert not answers(cache)


def test_the_embedded_model_is_known_to_be_good(tmp_path: Path) -> None:
    settings = load_settings({})
    (artifact,) = load_catalog(settings)[settings.model].artifacts
    assert artifact.sha256 in KNOWN_GOOD


def test_a_known_good_file_is_not_tried(plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = Children(ASSERTS)
    monkeypatch.setattr(trial, "file_sha256", lambda *args, **options: next(iter(KNOWN_GOOD)))
    try_file(plan, cache, command=children)
    assert not children.requests


def test_a_vocabulary_that_spells_in_bytes_has_to_know_each(tmp_path: Path, cache: Path) -> None:
    """The letters of no test text need byte 0xE5; those of a user may."""

    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_token_scores([0.0] * 259)
        kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.BYTE] * 256
        writer.kv_data[0]["tokenizer.ggml.token_type"].value = kinds

    spelled = [*TOKENS[:3], *(f"<0x{byte:02X}>" for byte in range(256))]
    whole = write_gguf(tmp_path / "whole.gguf", tokenizer="llama", tokens=spelled, change=change)
    try_file(make_plan(whole), cache)
    spelled[3 + 0xE5] = "nothing"
    lacking = write_gguf(tmp_path / "lacking.gguf", tokenizer="llama", tokens=spelled, change=change)
    with pytest.raises(ModelFileError, match="tokenises a text"):
        try_file(make_plan(lacking), cache)
