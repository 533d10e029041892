"""How adapters are written, and which mix that is."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.adapters import check_lora, default_mix, mix_text, read_mix, split_scale
from edge.errors import UsageError
from tests.adapters import fake_adapters

ADAPTERS = (*fake_adapters("pirate", "formal"), *fake_adapters("late", scale=0.0), *fake_adapters("half:1", scale=0.5))


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("a.gguf", "a.gguf", 1.0),
        ("a.gguf:0.5", "a.gguf", 0.5),
        ("folder/a:-2", "folder/a", -2.0),
        ("C:\\a.gguf", "C:\\a.gguf", 1.0),
        ("hf:owner/repo:0.25", "hf:owner/repo", 0.25),
    ],
)
def test_a_file_may_have_a_scale(text: str, path: str, scale: float) -> None:
    assert split_scale(text) == (Path(path), scale)


def test_a_file_whose_name_ends_like_a_scale_is_one(tmp_path: Path) -> None:
    (tmp_path / "a:2").write_bytes(b"")
    assert split_scale(str(tmp_path / "a:2")) == (tmp_path / "a:2", 1.0)
    assert split_scale(tmp_path / "b:2") == (tmp_path / "b:2", 1.0)


@pytest.mark.parametrize("text", ["a.gguf:101", "a.gguf:nan", "a.gguf:-inf", ":0.5"])
def test_a_scale_is_a_number_in_range(text: str) -> None:
    with pytest.raises(UsageError):
        split_scale(text)


@pytest.mark.parametrize(
    ("lora", "mix", "said"),
    [
        ({}, (), ""),
        ([], (), ""),
        (["pirate"], ((0, 1.0),), "pirate"),
        (["formal:0.5", "pirate"], ((0, 1.0), (1, 0.5)), "pirate, formal at 0.5"),
        ({"formal": -1, "pirate": 0}, ((1, -1.0),), "formal at -1"),
        (["late"], ((2, 1.0),), "late"),
        (["half:1"], ((3, 0.5),), "half:1 at 0.5"),
        (["half:1:2"], ((3, 2.0),), "half:1 at 2"),
    ],
)
def test_a_mix_is_named_in_any_order(lora: object, mix: object, said: str) -> None:
    found = read_mix(lora, ADAPTERS)  # type: ignore[arg-type]
    assert found == mix
    assert mix_text(found, ADAPTERS) == said


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ("pirate", "a list of adapters"),
        (["pirate", "pirate:2"], "named twice"),
        (["nobody"], "no adapter 'nobody'"),
        (["pirate:1e9"], "cannot be applied at"),
        ({"pirate": "much"}, "cannot be applied at much"),
        ({"pirate": True}, "cannot be applied at True"),
        ([None], "no adapter 'None'"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(lora: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_mix(lora, ADAPTERS)  # type: ignore[arg-type]


def test_the_usual_mix_leaves_out_those_at_0() -> None:
    assert default_mix(ADAPTERS) == ((0, 1.0), (1, 1.0), (3, 0.5))


def test_a_program_names_files() -> None:
    assert check_lora(None) is None
    assert check_lora([Path("a.gguf"), "b:2"]) == ("a.gguf", "b:2")
    for wrong in ("a.gguf", [1], {"a.gguf": 1}):
        with pytest.raises(UsageError, match="a list of adapters"):
            check_lora(wrong)
