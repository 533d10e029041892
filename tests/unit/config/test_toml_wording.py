"""Broken TOML: the same words for every file that a user may write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge.catalog import load_catalog
from edge.config import load_settings
from edge.config.toml import set_in_file
from edge.errors import ConfigError
from edge_convert.smaller.recipe import find_recipe


def read_settings(path: Path) -> object:
    return load_settings(path=path)


def read_catalogue(path: Path) -> object:
    config = path.with_name("config.toml")
    path.replace(path.with_name("catalog.toml"))
    config.write_text("")
    return load_catalog(load_settings(path=config))


def read_recipe(path: Path) -> object:
    return find_recipe(str(path))


def edit_settings(path: Path) -> object:
    return set_in_file(path, ["model"], "x")


READERS = [read_settings, read_catalogue, read_recipe, edit_settings]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"= 1", "is not a TOML file: Invalid statement (at line 1, column 1)."),
        (b"a = 1\nb = ", "is not a TOML file: Invalid value (at end of document)."),
        (b"a = 1\na = 2\n", "is not a TOML file: Cannot overwrite a value (at line 2, column 6)."),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b'a = "\xff"', "is not UTF-8 text: invalid start byte, byte 5."),
    ],
    ids=["statement", "end", "twice", "deep", "bytes"],
)
def test_the_words_are_the_same_everywhere(read: Callable[[Path], object], data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert said in caught.value.message
    assert "catalog.toml" in caught.value.message or str(path) in caught.value.message
    assert caught.value.hint
