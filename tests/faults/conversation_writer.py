"""Lives for the kill test. For every line "LIFE SEED" on stdin it forks a process that opens the store and appends until it
is killed, and says on stdout what it may show as saved; "dead" follows when that process is gone.

Forked from a process that has imported everything, so that 200 lives do not spend their time importing; each opens the
database for itself.
"""

from __future__ import annotations

import json
import os
import random
import sys

from edge.conversation import Attachment, ConversationStore
from edge.types import Message


def text_of(life: int, place: int, n_pieces: int) -> str:
    """The text of a message after so many pieces; every longer one begins with it."""
    return "".join(f"[{life}.{place}.{piece}]" + "é" * (piece * 37 % 400) for piece in range(n_pieces))


def say(**what: object) -> None:
    os.write(1, (json.dumps(what) + "\n").encode())  # at once, in one piece


def live(path: str, life: int, seed: int) -> None:
    """Append for ever."""
    rng = random.Random(seed)
    say(born=os.getpid())
    store = ConversationStore(path)
    infos = store.list(limit=1)
    info = infos[0] if infos and rng.random() < 0.9 else store.create(title=f"life {life}")
    say(conversation=info.id)
    parent, place = info.head, 0
    while True:
        n_pieces = rng.randint(1, 12)
        status = "partial" if rng.random() < 0.4 else "complete"
        files = [Attachment(f"{life}.txt", text_of(life, place, 30))] if rng.random() < 0.2 else []
        role = "assistant" if status == "partial" else "user"
        message = Message(role, text_of(life, place, n_pieces))  # type: ignore[arg-type]
        node = store.append(info.id, message, parent=parent, attachments=files, status=status)  # type: ignore[arg-type]
        say(id=node.id, place=place, n_pieces=n_pieces, status=status, n_files=len(files), parent=parent)
        for more in range(n_pieces + 1, n_pieces + 4) if status == "partial" else ():
            store.update(node.id, content=text_of(life, place, more))
            say(id=node.id, place=place, n_pieces=more, status="partial", n_files=len(files), parent=parent)
        if status == "partial":
            store.update(node.id, status="complete", record={"life": life})
            say(id=node.id, place=place, n_pieces=n_pieces + 3, status="complete", n_files=len(files), parent=parent)
        parent, place = node.id, place + 1


def main() -> None:
    """Fork a life for each line."""
    for line in sys.stdin:
        life, seed = map(int, line.split())
        child = os.fork()
        if child == 0:
            try:
                live(sys.argv[1], life, seed)
            except BaseException as error:
                say(failed=repr(error))
                raise
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        say(dead=status)


if __name__ == "__main__":
    main()
