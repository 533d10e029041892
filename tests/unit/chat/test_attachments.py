from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge.conversation import Attachment
from edge.errors import EdgeError, UsageError
from edge_chat import attachments as att


def write(folder: Path, name: str, data: bytes | str = "text") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_a_file_is_read_as_typed(tmp_path: Path) -> None:
    write(tmp_path, "a b/n.md", "zwei\r\nZeilen ü")
    assert att.read_attachment("a b/n.md", tmp_path, 100) == Attachment("a b/n.md", "zwei\nZeilen ü")
    assert att.read_attachment(str(tmp_path / "a b/n.md"), Path("/"), 100).text == "zwei\nZeilen ü"


def test_byte_order_marks(tmp_path: Path) -> None:
    write(tmp_path, "u8", "ü".encode("utf-8-sig"))
    write(tmp_path, "u16", "ü".encode("utf-16"))
    assert att.read_attachment("u8", tmp_path, 100).text == "ü"
    assert att.read_attachment("u16", tmp_path, 100).text == "ü"


def test_home(tmp_path: Path, own_home: Path) -> None:
    write(own_home, "x.txt")
    assert att.read_attachment("~/x.txt", tmp_path, 100).text == "text"
    with pytest.raises(UsageError, match="no file ~nobody-here/x"):
        att.read_attachment("~nobody-here/x", tmp_path, 100)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "There is no file missing.txt"),
        ("folder", "folder is a directory"),
        ("large", r"too large to attach \(101 B\). The limit is 100 B"),
        ("image.png", "image.png is a binary file"),
        ("latin", "not UTF-8"),
        ("pipe", "pipe is not a regular file. Only"),
        ("large/below", "There is no file"),
        ("nul\0", "cannot be read"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path, "large", "x" * 101)
    write(tmp_path, "image.png", b"\x89PNG\r\n\x1a\n\0\0\0")
    write(tmp_path, "latin", "Füße".encode("latin-1"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EdgeError, match=message):
        att.read_attachment(name, tmp_path, 100)


def test_mentions_are_of_files_that_exist(tmp_path: Path) -> None:
    write(tmp_path, "a.md")
    write(tmp_path, "with blank.md")
    text = 'See @a.md, @"with blank.md" and @missing.md; write to me@a.md or ask @john.'
    assert att.find_mentions(text, tmp_path) == ["a.md", "with blank.md"]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("@", (0, "")),
        ("see @src/ma", (4, "src/ma")),
        ('see @"with bl', (4, "with bl")),
        ("me@host", None),
        ("@done ", None),
        ("", None),
    ],
)
def test_the_mention_being_typed(before: str, expected: tuple[int, str] | None) -> None:
    assert att.mention_before(before) == expected


def test_quotes_are_read_again(tmp_path: Path) -> None:
    for name in ("plain.md", "with blank.md"):
        write(tmp_path, name)
        assert att.find_mentions(f"x {att.quote(name)} y", tmp_path) == [name]


def test_proposals(tmp_path: Path) -> None:
    for name in ("main.py", "src/main_test.py", "src/domain.py", "docs/index.md", ".hidden/main.py", "node_modules/main.py"):
        write(tmp_path, name)
    index = att.FileIndex(tmp_path)
    assert index.search("main") == ["main.py", "src/main_test.py", "src/domain.py"]
    assert index.search("didx") == ["docs/index.md"]
    assert index.search("zzz") == []
    assert len(index.search("", limit=2)) == 2
    assert index.search(".h") == [".hidden/"]
    assert index.search("./s") == ["./src/"]
    assert index.search(str(tmp_path) + "/doc") == [f"{tmp_path}/docs/"]
    assert index.search("/nowhere/at/all") == []


def test_pasted_texts_get_names() -> None:
    assert att.paste_name([]) == "pasted text 1"
    assert att.paste_name(["pasted text 1", "notes.md"]) == "pasted text 2"


def test_drafts_keep_their_attachments() -> None:
    kept = [Attachment("a", "x\ny"), Attachment("ü", "")]
    assert att.unpack_draft(att.pack_draft("text", kept)) == ("text", kept)
    assert att.pack_draft("text", []) == "text"
    assert att.unpack_draft("text") == ("text", [])


@pytest.mark.parametrize("draft", ["\x1eedge-draft ", "\x1eedge-draft {}", "\x1eedge-draft []", '\x1eedge-draft {"text": 1}'])
def test_what_only_looks_like_a_packed_draft_is_shown(draft: str) -> None:
    assert att.unpack_draft(draft) == (draft, [])


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("@missing.txt summarise", ["missing.txt"]),
        ("see @src/nosuch and @there.md", ["src/nosuch"]),
        ('@"no such file" please', ["no such file"]),
        ("@dangling.md", ["dangling.md"]),
        ("what is in @there.md?", []),
        ("(@missing.md).", []),  # a mention begins after a blank
        ("look at @missing.md!", ["missing.md"]),
        ("mail a@missing.txt or @ada, thanks @bob.", []),
        ("@user@example.org says", []),
        ("@app.route('/x')\n@dataclass\n@property", []),
        ("@pytest.mark.parametrize", []),
        ("@folder", []),
        ("@2 o'clock, @ 3.5", []),
        ("@./nosuch @~/nosuch.md @/no/such", ["./nosuch", "~/nosuch.md", "/no/such"]),
    ],
)
def test_mentions_of_files_that_are_missing(tmp_path: Path, text: str, missing: list[str]) -> None:
    write(tmp_path, "there.md")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling.md").symlink_to(tmp_path / "gone")
    assert att.missing_mentions(text, tmp_path) == missing


def test_dropped_files(tmp_path: Path) -> None:
    one, two = write(tmp_path, "my file.txt"), write(tmp_path, "it's ü.md")
    escaped = [str(path).replace(" ", "\\ ").replace("'", "\\'") for path in (one, two)]
    names = [str(one), str(two)]
    assert att.dropped_files(f"{escaped[0]} ") == names[:1]  # Terminal.app, iTerm2
    assert att.dropped_files(" ".join(escaped)) == names
    assert att.dropped_files(f"'{one}'") == names[:1]  # GNOME
    assert att.dropped_files(f"'{one}' \"{two}\"\n") == names
    assert att.dropped_files(f"{one}") == names[:1]  # kitty
    assert att.dropped_files(one.as_uri()) == names[:1]
    assert att.dropped_files(f"{one.as_uri()}\r\n{two.as_uri()}\r\n".replace("\r\n", "\n")) == names
    assert att.dropped_files(f"file://localhost{one.as_uri()[7:]}") == names[:1]


@pytest.mark.parametrize(
    "text", ["", " ", "/nowhere/x", "say 'hi", "{one} and more", "{one}\nnext line", "{folder}", "a" * 300_000]
)
def test_other_pastes_are_text(tmp_path: Path, text: str) -> None:
    one = write(tmp_path, "one.txt")
    assert att.dropped_files(text.format(one=one, folder=tmp_path)) == []


@pytest.mark.parametrize(
    ("typed", "paths"),
    [
        ("my\\ file.txt", ["my file.txt"]),
        ("my file.txt", ["my file.txt"]),
        ("'my file.txt' b.md", ["my file.txt", "b.md"]),
        ("b.md my\\ file.txt", ["b.md", "my file.txt"]),
        ("no such", ["no such"]),
        ("it's", ["it's"]),
        ("don't.md", ["don't.md"]),
    ],
)
def test_paths_of_a_command(tmp_path: Path, typed: str, paths: list[str]) -> None:
    for name in ("my file.txt", "b.md", "don't.md"):
        write(tmp_path, name)
    assert att.typed_paths(typed, tmp_path) == paths


def test_only_what_can_be_attached_is_proposed(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "four")
    write(tmp_path, "b.bin", b"\0")
    write(tmp_path, "large.txt", "x" * 101)
    write(tmp_path, "u16", "ü".encode("utf-16"))
    os.mkfifo(tmp_path / "f")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    found = {path: att.describe(path, tmp_path, 100) for path in att.FileIndex(tmp_path).search("")}
    assert found == {"a.md": "4 B", "b.bin": None, "f": None, "gone": None, "large.txt": None, "u16": "4 B"}
    assert att.describe(str(tmp_path), tmp_path, 100) == ""
