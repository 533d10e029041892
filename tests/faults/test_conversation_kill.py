"""A message shown as saved survives kill -9 at random points of a process that only appends: 200 kills in `make prove`."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edge.conversation import ConversationStore
from tests.prove import proof_size

WRITER = Path(__file__).with_name("conversation_writer.py")
N_KILLS = proof_size(40, 200)


def load_text_of() -> Any:
    spec = importlib.util.spec_from_file_location("conversation_writer", WRITER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.text_of


class Lives:
    """The other end of conversation_writer.py."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WRITER), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self._rest = b""

    def hear(self, timeout_s: float = 60.0) -> dict[str, Any] | None:
        """The next thing it says; None when it says nothing in that time."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.stdout], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(self.stdout.fileno(), 65536) if ready else b""
            if ready and not data:
                raise EOFError("the writer is gone")
            if not ready:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.stdin.close()
        self.stdout.close()


@pytest.mark.prove
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_messages_shown_as_saved_survive_kills(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    text_of = load_text_of()
    rng = random.Random(20240229)
    shown: dict[int, tuple[int, dict[str, Any]]] = {}  # id -> (life, the last thing said of it)
    n_kills_while_writing = 0
    lives = Lives(path)
    try:
        for life in range(N_KILLS):
            lives.stdin.write(f"{life} {rng.randrange(1 << 30)}\n".encode())
            lives.stdin.flush()
            born = lives.hear()
            assert born is not None and "born" in born, born
            # Some lives end while the file is being opened or made, most in the middle of an append.
            n_wanted, delay_s = rng.choice([0, 0, 1, 2, 3, 5, 8]), rng.uniform(0, 0.006)
            said: list[dict[str, Any]] = []
            while len(said) < n_wanted:
                what = lives.hear()
                assert what is not None and "failed" not in what, what
                said.append(what)
            time.sleep(delay_s)  # where the kill falls is left to chance
            os.kill(born["born"], signal.SIGKILL)
            while True:
                what = lives.hear()
                assert what is not None and "failed" not in what, what
                if "dead" in what:
                    break
                said.append(what)
            assert what["dead"] == -signal.SIGKILL
            n_kills_while_writing += any("id" in item for item in said)
            check(path, life, said, shown, text_of)
    finally:
        lives.close()
    assert len(shown) > N_KILLS, "the lives were too short to prove anything"
    assert n_kills_while_writing > N_KILLS // 2
    with ConversationStore(path) as store:
        for node_id, (life, last) in shown.items():
            node = store.node(node_id)
            assert node.content.startswith(text_of(life, last["place"], last["n_pieces"]))


def check(
    path: Path, life: int, said: list[dict[str, Any]], shown: dict[int, tuple[int, dict[str, Any]]], text_of: Any
) -> None:
    """After one kill: the file is whole, everything that was ever shown is there, and what is there makes sense."""
    with ConversationStore(path) as store:
        assert store.check() == []
        infos = {info.id: info for info in store.list()}
        nodes = {}
        for info in infos.values():
            nodes.update({node.id: node for node in store.path(info.id)})
            assert info.n_messages == len(store.path(info.id))  # every life goes on at the head, so there is one path
        for item in said:
            if "conversation" in item:
                assert item["conversation"] in infos
            elif "id" in item:
                shown[item["id"]] = (life, item)
        assert shown.keys() <= nodes.keys()
        for item in said:
            if "id" not in item:
                continue
            node = nodes[item["id"]]
            last = shown[node.id][1]
            assert node.parent == item["parent"]
            # It may be further than what was shown, by what was being written at the kill, but never behind.
            written = [text_of(life, last["place"], last["n_pieces"] + more) for more in (0, 1)]
            assert node.content in written
            assert node.status in (("complete",) if last["status"] == "complete" else ("complete", "stopped"))
            assert [file.text for file in node.attachments] == [text_of(life, last["place"], 30)] * last["n_files"]
        assert all(node.status != "partial" for node in nodes.values())
        newest = max(shown, default=None)
        assert newest is None or any(hit.node_id == newest for hit in store.search(nodes[newest].content.split("é")[0]))
