"""What the picker says of a model, and the sizes that it goes by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge.catalog import load_catalog, resolve
from edge.config import load_settings
from edge.plan.tuning import Tuning, remember
from edge.plan.verdict import free_memory, memory_verdict
from edge.units import count_text
from edge_chat.offers import list_choices
from tests.unit.bench.fakes import device, write_gguf

A_DEVICE = device("raspberry-pi-5")
A_TUNING = Tuning(
    backend="onnx", accelerator="cpu", threads=3, threads_batch=4, n_ubatch=256, flash_attention=False, kv_type_k="f16",
    kv_type_v="f16", decode_tokens_per_s=34.2, prefill_tokens_per_s=210.5, default_decode_tokens_per_s=28.9,
    default_prefill_tokens_per_s=194.0, n_prompt=512, n_decode=64, measured_on="2026-11-26",
)  # fmt: skip


def test_a_choice_says_what_one_decides_by() -> None:
    device = replace(A_DEVICE, memory=replace(A_DEVICE.memory, available_bytes=1_800_000_000))
    choices = {choice.value: choice for choice in list_choices(load_settings(), device)}
    default = choices["smollm2-135m"]
    assert default.columns == ("98.4 MB", "135M", "fits", "")
    assert default.detail.startswith("The embedded default") and "Apache-2.0, will be downloaded." in default.about
    assert "Takes about 523.0 MB of 1.5 GB of free memory." in default.about
    assert choices["smollm2-1.7b"].columns[:3] == ("~1.1 GB", "1.7B", "fits barely")
    assert choices["phi3-mini"].columns[2] == "does not fit"
    assert "whose terms you have to accept" in choices["gemma3-1b"].about
    for choice in choices.values():
        assert choice.detail and all(choice.columns[:3]), choice


def test_memory_of_the_loaded_model_counts_as_free_and_it_is_listed() -> None:
    device = replace(A_DEVICE, memory=replace(A_DEVICE.memory, available_bytes=1_000_000_000))
    choices = list_choices(load_settings(), device, in_use="/models/my.gguf", in_use_bytes=9_000_000_000)
    assert (choices[0].value, choices[0].label) == ("/models/my.gguf", "my.gguf")
    assert {choice.columns[2] for choice in choices[1:]} == {"fits"}


def test_a_measured_speed_is_shown(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    (own_home / "catalog.toml").write_text(f"[[models.mine.artifacts]]\nreference = '{path}'\n")
    settings = load_settings()
    [before] = [c for c in list_choices(settings, A_DEVICE) if c.value == "mine"]
    assert before.columns[3] == ""
    artifact = resolve(str(path), settings=settings, download=False)
    remember(A_DEVICE, artifact, A_TUNING, cache_dir=settings.paths.cache_dir)
    [after] = [c for c in list_choices(settings, A_DEVICE) if c.value == "mine"]
    assert after.columns[3] == "34.2 tok/s" and "34.2 tok/s, measured by edge tune." in after.about


def test_every_model_of_the_catalogue_says_what_one_decides_by() -> None:
    for name, entry in load_catalog().items():
        if entry.voice is not None:
            continue  # they are not offered
        first = entry.artifacts[0]
        assert entry.parameters and entry.description.endswith("."), name
        size = first.size_bytes or first.about_bytes
        most = 2.1 if first.quantisation == "F16" else 1.3
        assert size and 0.4 < size / entry.parameters < most, f"{name}: {size} bytes for {entry.parameters} weights"


def test_a_verdict_is_never_better_for_a_larger_model_or_less_memory() -> None:
    order = ("fits", "tight", "too large")
    for free in (0, 10**8, 10**9, 3 * 10**9, 10**11):
        verdicts = [order.index(memory_verdict(size, free)) for size in range(10**7, 4 * 10**9, 10**7)]
        assert verdicts == sorted(verdicts)
    for size in (10**7, 10**9):
        verdicts = [order.index(memory_verdict(size, free)) for free in range(0, 5 * 10**9, 10**8)]
        assert verdicts == sorted(verdicts, reverse=True)


def test_memory_of_a_gpu_counts_unless_it_is_main_memory() -> None:
    laptop, mac = device("laptop-rtx4060"), device("mac-m3-pro")
    assert free_memory(laptop) > laptop.memory.available_bytes
    assert free_memory(mac) < mac.memory.available_bytes


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (999, "999"),
        (134_515_008, "135M"),
        (999_885_952, "1.0B"),
        (1_711_376_384, "1.7B"),
        (7_240_000_000, "7.2B"),
        (141 * 10**9, "141B"),
    ],
)
def test_numbers_of_parameters(number: int, text: str) -> None:
    assert count_text(number) == text
