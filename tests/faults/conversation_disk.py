"""Disk tests of conversations, run in a process of their own. Prints one JSON object, the last line of stdout.

fill DIRECTORY        the directory is a small disk: write until it is full, free some space, write on
limit DIRECTORY       the same with a limit on the size of files instead (RLIMIT_FSIZE)
readonly DIRECTORY    everything is there, but may not be written by this user (nobody, where root runs the test)
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from edge.conversation import ConversationStore
from edge.errors import StorageError
from edge.types import Message


def fill_up(store: ConversationStore, conversation_id: str, saved: dict[int, str], rng: random.Random) -> StorageError:
    """Append and stream until the disk is full; gives the error. `saved` is what append and update said is on the disk."""
    while True:
        text = f"{len(saved)} " + "".join(rng.choices("abcdefgh ", k=rng.randint(10, 30_000)))
        parent = max(saved, default=None)
        try:
            node = store.append(conversation_id, Message("assistant", text), parent=parent, status="partial")
            saved[node.id] = text
            store.update(node.id, content=text + "!", status="complete")
            saved[node.id] = text + "!"
        except StorageError as error:
            return error
        assert len(saved) < 5000, "the disk never became full"


def write_on(path: Path, make_room: Callable[[], None]) -> dict[str, object]:
    """Fill the disk, look at what is there, make room, go on, look again."""
    rng, saved = random.Random(1), dict[int, str]()
    with ConversationStore(path) as store:
        info = store.create(title="t")
        errors = [fill_up(store, info.id, saved, rng) for _ in range(3)]
        n_saved = len(saved)

        def intact() -> bool:
            return {node.id: node.content for node in store.path(info.id)} == saved and store.get(info.id).head == max(saved)

        while_full = intact() and len(store.search("0")) > 0 and store.list()[0].id == info.id
        try:
            store.rename(info.id, "x" * 100)
            store.append(info.id, Message("user", "x" * 1_000_000), parent=None)
            large = "saved"
        except StorageError:
            large = "refused"
        make_room()
        node = store.append(info.id, Message("user", "there is room again"), parent=max(saved))
        saved[node.id] = node.content
        after = intact()
        problems = store.check()
    with ConversationStore(path) as store:
        again = {node.id: node.content for node in store.path(info.id)} == saved and not store.check()
    return {
        "messages": [error.message for error in errors],
        "hints": [error.hint for error in errors],
        "n_saved": n_saved,
        "while_full": while_full,
        "large": large,
        "after": after,
        "again": again,
        "problems": problems,
    }


def fill(directory: Path) -> dict[str, object]:
    ballast = directory / "ballast"
    ballast.write_bytes(b"x" * 600_000)
    result = write_on(directory / "c.db", ballast.unlink)
    while True:  # and now full to the last byte, with no file open
        try:
            with (directory / "rest").open("ab") as file:
                file.write(b"x" * 4096)
                file.flush()
        except OSError:
            break
    before = (directory / "c.db").read_bytes()
    for name in ("new.db", "c.db"):
        try:
            with ConversationStore(directory / name) as store:
                store.append(store.create().id, Message("user", "x" * 10_000), parent=None)
            result[f"open {name}"] = "worked"
        except StorageError as error:
            result[f"open {name}"] = str(error)
    result["is_unchanged"] = (directory / "c.db").read_bytes() == before
    (directory / "rest").unlink()
    with ConversationStore(directory / "c.db") as store:
        result["problems_at_last"] = store.check()
    return result


def limit(directory: Path) -> dict[str, object]:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
    return write_on(directory / "c.db", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)))


def readonly(directory: Path) -> dict[str, object]:
    result: dict[str, object] = {}
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    for name in ("old.db", "new.db", "deeper/new.db"):
        try:
            with ConversationStore(directory / name) as store:
                store.create()
            result[name] = ["worked", ""]
        except StorageError as error:
            result[name] = [error.message, error.hint]
    return result


if __name__ == "__main__":
    chosen = {"fill": fill, "limit": limit, "readonly": readonly}[sys.argv[1]]
    print(json.dumps(chosen(Path(sys.argv[2]))))
