"""Roles: files of the folder `prompts`, and what is said about those that cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge.config import load_settings
from edge.config.roles import list_roles, read_role
from edge.errors import StorageError, UsageError


@pytest.fixture
def folder(own_home: Path) -> Path:
    folder = load_settings().paths.prompts_dir
    assert folder == own_home / "prompts"
    return folder


def test_files_are_roles(folder: Path) -> None:
    assert list_roles(load_settings()) == []
    folder.mkdir(parents=True)
    (folder / "translator.md").write_bytes("\ufeffTranslate to French.\r\nNothing else. \n\n".encode())
    (folder / "Kind editor.md").write_text("Be kind.")
    (folder / "notes.txt").write_text("not a role")
    (folder / ".hidden.md").write_text("not a role")
    assert [role.name for role in list_roles(load_settings())] == ["Kind editor", "translator"]
    assert read_role("translator", load_settings()).text == "Translate to French.\nNothing else."
    assert read_role("TRANSLATOR", load_settings()).name == "translator"
    with pytest.raises(UsageError, match=r"no role 'transltor'.*Did you mean translator\? Roles: Kind editor, translator"):
        read_role("transltor", load_settings())


def test_without_roles_the_error_says_how_to_make_one(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no role 'x'.*Write a system prompt into a file such as .*prompts/translator.md"):
        read_role("x", load_settings())


@pytest.mark.parametrize(
    ("data", "message"),
    [(b" \n", "is empty"), (b"\xff\xfe", "is not UTF-8 text"), (b"x" * 300_000, "is too long"), (None, "is not a file")],
)
def test_what_cannot_be_a_role_says_why(folder: Path, data: bytes | None, message: str) -> None:
    folder.mkdir(parents=True)
    if data is None:
        os.mkfifo(folder / "odd.md")
    else:
        (folder / "odd.md").write_bytes(data)
    with pytest.raises(UsageError, match=message):
        _ = read_role("odd", load_settings()).text


def test_a_file_that_is_gone_and_a_folder_that_is_none(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "gone.md").symlink_to(folder / "nowhere")
    with pytest.raises(StorageError, match="cannot be read"):
        _ = read_role("gone", load_settings()).text
    (folder / "gone.md").unlink()
    folder.rmdir()
    folder.write_text("a file")
    with pytest.raises(StorageError, match=r"roles in .* cannot be read"):
        list_roles(load_settings())
