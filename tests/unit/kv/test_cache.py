"""Memory and disk together, on the fake backend: its keys and values depend on every token before them, so a wrong block, a
block in the wrong place or a wrong count of tokens gives other logits than reading the prompt from the start.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge.backends.fake import FakeBackend
from edge.errors import BackendError, UnsupportedError
from edge.kv.blocks import fingerprint
from edge.kv.cache import KVCache, Reuse
from edge.kv.files import StoreFiles
from edge.kv.slots import Slot
from edge.kv.store import BlockStore, StoreOptions

MODEL = fingerprint({"weights": "one"})
OTHER_MODEL = fingerprint({"weights": "another"})
CHUNK = 64


class Recurrent(FakeBackend):
    """A model whose state can neither be cut nor taken apart."""

    def __init__(self, **options: int) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.capabilities = replace(self.capabilities, rewind=False, export_kv=False)

    def rewind(self, seq_id: int, n_keep: int) -> None:
        if n_keep not in (0, self.length(seq_id)):
            raise UnsupportedError("a recurrent state cannot be cut")
        super().rewind(seq_id, n_keep)

    def export_kv(self, seq_id: int, start: int, end: int) -> bytes:
        if (start, end) != (0, self.length(seq_id)):
            raise UnsupportedError("a recurrent state is exported as a whole")
        return super().export_kv(seq_id, start, end)


class Device:
    """A backend and its cache, which can be restarted, and how a turn uses them."""

    def __init__(
        self,
        directory: Path,
        *,
        kind: type[FakeBackend] = FakeBackend,
        n_ctx: int = 4096,
        n_seq: int = 3,
        exact: bool = False,
        encrypt: bool = False,
        budget_bytes: int = 1 << 30,
    ) -> None:
        self.directory, self.kind, self.n_ctx, self.n_seq, self.exact = directory, kind, n_ctx, n_seq, exact
        self.encrypt, self.budget_bytes, self.now = encrypt, budget_bytes, 0.0
        self.start()

    def start(self, model: bytes = MODEL) -> None:
        self.backend = self.kind(n_ctx=self.n_ctx, n_seq=self.n_seq, chunk_size=CHUNK)
        options = StoreOptions(self.budget_bytes, 0, encrypt=self.encrypt, sync=False, timer=lambda: self.now)
        self.store = BlockStore(self.directory, options)
        self.cache = KVCache(self.backend, self.store, model=model, exact=self.exact)

    def stop(self) -> None:
        self.store.close()
        self.backend.close()

    def restart(self, model: bytes = MODEL) -> None:
        self.stop()
        self.start(model)

    def read(self, prompt: list[int], owner: str = "", boundaries: tuple[int, ...] = ()) -> tuple[Slot, Reuse]:
        """Prefill a prompt as the scheduler does."""
        taken = self.cache.acquire(prompt, owner, boundaries)
        assert taken is not None
        slot, reuse = taken
        assert reuse.n_memory + reuse.n_disk == slot.n_tokens == self.backend.length(slot.seq_id) < len(prompt)
        kept = self.cache.checkpoints(boundaries)
        while slot.n_tokens < len(prompt):
            size = self.cache.chunk_size
            end = min([(slot.n_tokens // size + 1) * size, *(at for at in kept if at > slot.n_tokens)])
            chunk = prompt[slot.n_tokens : end]
            self.cache.evict_and_retry(lambda chunk=chunk: self.backend.prefill(slot.seq_id, chunk))  # type: ignore[misc]
            self.cache.note_prefill(slot, chunk, 10.0 * len(chunk))
            if slot.n_tokens in kept:
                self.cache.checkpoint(slot)
        return slot, reuse

    def turn(
        self, prompt: list[int], reply: list[int], owner: str = "", boundaries: tuple[int, ...] = ()
    ) -> tuple[list[int], Reuse]:
        """Read a prompt, check that its logits are those of a fresh backend, write a reply. Returns all tokens."""
        slot, reuse = self.read(prompt, owner, boundaries)
        fresh = FakeBackend(n_ctx=self.n_ctx, n_seq=1)
        fresh.prefill(0, prompt)
        assert (self.backend.logits(slot.seq_id) == fresh.logits(0)).all()
        for token in reply:
            self.cache.evict_and_retry(lambda token=token: self.backend.decode([(slot.seq_id, token)]))  # type: ignore[misc]
            self.cache.note_decode(slot, token)
        self.cache.release(slot)
        return [*prompt, *reply], reuse


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path / "kv")
    yield device
    device.stop()


def tokens(n_tokens: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(n_tokens)]


def test_a_conversation_goes_on_after_a_restart(device: Device) -> None:
    said, reuse = device.turn(tokens(300), tokens(70, 1))
    assert reuse == Reuse()
    device.restart()
    question = [*said, *tokens(20, 2)]
    said, reuse = device.turn(question, tokens(30, 3))
    assert (reuse.n_memory, reuse.n_disk) == (0, 370)
    assert reuse.saved_ms > 0
    device.restart()
    _, reuse = device.turn([*said, 9], [])
    assert (reuse.n_memory, reuse.n_disk) == (0, 420), "the blocks of the second turn follow those of the first"


def test_every_token_is_written_once(device: Device) -> None:
    said: list[int] = []
    for turn in range(6):
        said, _ = device.turn([*said, *tokens(60, turn)], tokens(75, 100 + turn))
        if turn % 2:
            device.restart()
    device.store.flush()
    stats = device.store.stats()
    assert stats.n_tokens == len(said)
    payload = 20 * stats.n_tokens  # what the fake keeps of a token
    assert sum(info.size_bytes for info in device.store.ls()) < payload + stats.n_blocks * 600 + 4 * stats.n_tokens


def test_a_shared_prefix_is_stored_once_and_found_by_a_new_conversation(device: Device) -> None:
    system = tokens(200)
    for number in range(10):
        device.turn([*system, *tokens(30, number)], tokens(10, number), owner=f"c{number}", boundaries=(200,))
        if number == 4:
            device.restart()
    device.store.flush()
    assert device.store.stats().n_tokens == 200 + 10 * 40
    device.restart()
    _, reuse = device.turn([*system, *tokens(30, 99)], [])
    assert reuse.n_disk >= 200


def test_going_back_to_an_earlier_turn_after_a_restart(device: Device) -> None:
    said, _ = device.turn(tokens(500), tokens(100, 1))
    device.turn([*said[:333], *tokens(40, 2)], tokens(5, 3))
    device.restart()
    for n_kept in (600, 599, 450, 333, 130, 40):
        _, reuse = device.turn([*said[:n_kept], *tokens(7, n_kept)], [])
        assert reuse.n_memory + reuse.n_disk >= n_kept


def test_what_is_in_memory_is_not_read_from_the_disk(device: Device) -> None:
    said, _ = device.turn(tokens(300), tokens(20, 1))
    _, reuse = device.turn([*said, *tokens(5, 2)], [])
    assert (reuse.n_memory, reuse.n_disk) == (320, 0)
    assert reuse.saved_ms > 300


def test_the_rest_of_a_prompt_comes_from_the_disk_when_memory_has_only_its_prefix(device: Device) -> None:
    said, _ = device.turn(tokens(400), tokens(50, 1))
    device.restart()
    device.turn([*said[:200], *tokens(9, 2)], [])
    _, reuse = device.turn([*said, 1, 2], [])
    assert reuse.n_memory + reuse.n_disk == 450
    assert reuse.n_disk >= 250


def test_blocks_of_another_model_are_not_used(device: Device) -> None:
    said, _ = device.turn(tokens(300), [])
    device.restart(OTHER_MODEL)
    _, reuse = device.turn([*said, 1], [])
    assert reuse.n_disk == 0
    device.restart()
    _, reuse = device.turn([*said, 1], [])
    assert reuse.n_disk == 300


def test_short_prompts_leave_no_files(device: Device) -> None:
    device.turn(tokens(20), tokens(5, 1))
    device.store.flush()
    assert device.store.stats().n_blocks == 0


def test_a_deleted_conversation_is_gone_and_others_go_on(device: Device) -> None:
    system = tokens(150)
    mine, _ = device.turn([*system, *tokens(50, 1)], tokens(20, 2), owner="mine")
    yours, _ = device.turn([*system, *tokens(50, 3)], tokens(20, 4), owner="yours")
    device.store.flush()
    device.store.forget("mine")
    # Still resident here, but its parents are gone: the next turn stores what it needs again.
    yours, _ = device.turn([*yours, *tokens(10, 5)], tokens(30, 6), owner="yours")
    device.restart()
    _, reuse = device.turn([*mine, 1], [])
    assert reuse.n_disk <= 200
    _, reuse = device.turn([*yours, 1], [])
    assert reuse.n_memory + reuse.n_disk == len(yours)


def test_a_store_that_is_cleared_under_a_running_model_fills_again(device: Device) -> None:
    said, _ = device.turn(tokens(300), tokens(50, 1))
    device.store.flush()
    device.store.clear()
    said, _ = device.turn([*said, *tokens(10, 2)], tokens(10, 3))
    device.restart()
    _, reuse = device.turn([*said, 1], [])
    assert reuse.n_disk == 370


def test_text_of_another_conversation_does_not_become_mine(device: Device) -> None:
    """Both begin with the same words, inside one block: what only looks alike for a while belongs to nobody else."""
    mine, _ = device.turn([*tokens(60), *tokens(60, 1)], tokens(20, 2), owner="mine")
    device.restart()
    device.turn([*mine[:60], *tokens(40, 3)], tokens(20, 4), owner="yours")
    device.store.flush()
    stolen = [block for block in device.store.export_blocks("yours") if list(block.tokens) != mine[: len(block.tokens)]]
    assert [token for block in stolen for token in block.tokens][60:] == [*tokens(40, 3), *tokens(20, 4)]
    assert len(list(device.store.export_blocks("yours"))) == len(stolen), "nothing of the other one is in there"
    device.store.forget("mine")
    assert {owner for info in device.store.ls() for owner in info.owners} == {"yours"}
    assert device.store.stats().n_tokens == 120


def test_a_fork_owns_what_it_rests_on_and_leaves_nothing(device: Device) -> None:
    said, _ = device.turn(tokens(300), tokens(30, 1), owner="mine")
    fork, reuse = device.turn([*said[:310], 5], tokens(50, 2), owner="fork")
    assert reuse.n_memory == 310, "in the same process: the disk was not even asked"
    device.store.flush()
    device.store.forget("mine")
    device.restart()
    _, reuse = device.turn([*fork, 1], [], owner="fork")
    assert reuse.n_disk == len(fork)
    device.store.flush()
    device.store.forget("fork")
    assert device.store.stats().n_blocks == 0


def test_a_restore_that_breaks_down_costs_only_time(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = device.turn(tokens(300), tokens(30, 1))
    device.restart()
    rewind, imports = device.backend.rewind, device.backend.import_kv

    def refuse(seq_id: int, n_keep: int) -> None:
        if n_keep:
            raise UnsupportedError("cannot be cut there")
        rewind(seq_id, 0)

    monkeypatch.setattr(device.backend, "rewind", refuse)
    device.turn([*said[:200], 7, 7, 7], [])  # needs a part of a block; `turn` checks the logits
    monkeypatch.setattr(device.backend, "rewind", rewind)
    n_left = iter([1])

    def break_down(seq_id: int, block: bytes) -> None:
        if next(n_left, None) is None:
            raise RuntimeError("a bug")
        imports(seq_id, block)

    device.restart()
    imports = device.backend.import_kv
    monkeypatch.setattr(device.backend, "import_kv", break_down)
    _, reuse = device.turn([*said, 1], [])
    assert reuse.n_disk == 0


def test_the_disk_hears_early_what_will_be_read(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, bytes]] = []

    def listen(name: str) -> None:
        real = getattr(StoreFiles, name)

        def hear(files: StoreFiles, key: bytes) -> object:
            heard.append((name, key))
            return real(files, key)

        monkeypatch.setattr(StoreFiles, name, hear)

    said, _ = device.turn(tokens(3000), [])
    device.restart()
    listen("prefetch")
    listen("load")
    device.turn([*said, 1], [])
    read = [key for name, key in heard if name == "load"]
    assert [key for name, key in heard if name == "prefetch"] == read
    ahead = [heard.index(("load", key)) - heard.index(("prefetch", key)) for key in read]
    assert min(ahead[1:]) >= 15 and max(ahead) < 35, "early, and not the whole of a long history at once"


@pytest.mark.parametrize("encrypt", [False, True])
def test_damaged_and_missing_files_are_computed_again(tmp_path: Path, encrypt: bool) -> None:
    rng = random.Random(5)
    device = Device(tmp_path / "kv", encrypt=encrypt)
    said, _ = device.turn(tokens(900), tokens(100, 1))
    n_less = 0
    for number in range(30):
        device.restart()
        files = sorted(path for path in (tmp_path / "kv" / "blocks").rglob("*") if path.is_file())
        path = rng.choice(files)
        data = bytearray(path.read_bytes())
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            path.write_bytes(data[: rng.randrange(len(data))])
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        _, reuse = device.turn([*said, number], [])
        n_less += reuse.n_disk < len(said)
        # The turn above stored again what was lost.
        device.restart()
        _, reuse = device.turn([*said, number], [])
        assert reuse.n_disk == len(said)
    assert n_less == 30, "every damage was met and cost only time"
    device.stop()


def test_a_disk_that_fails_costs_nothing_but_reuse(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    said, _ = device.turn(tokens(200), tokens(20, 1))
    device.store.flush()
    monkeypatch.setattr("edge.kv.files.StoreFiles.write", full)
    said, reuse = device.turn([*said, *tokens(200, 2)], tokens(20, 3))
    assert reuse.n_memory == 220
    device.store.flush()
    assert device.store.problem == "the disk is full"
    device.turn([*said, 1], tokens(20, 4))


@pytest.mark.parametrize("owner", ["", "ann"])
def test_a_disk_that_was_full_from_the_start_is_used_once_it_has_room(
    device: Device, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("edge.kv.files.StoreFiles.write", full)
        said, _ = device.turn(tokens(200), tokens(20, 1), owner)
        device.store.flush()
        assert device.store.problem == "the disk is full" and device.store.is_paused
        device.turn([*said, 1], tokens(20, 2), owner)
        assert device.store.stats().n_queued == 0, "it is left alone for a while"
    device.now += 60.0
    device.turn([*said, 2], tokens(20, 3), owner)
    device.store.flush()
    assert device.store.problem is None and device.store.stats().n_blocks > 0


def test_a_block_that_the_engine_refuses_is_computed_again(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = device.turn(tokens(300), [])
    device.restart()

    def refuse(*_args: object) -> None:
        raise BackendError("of another layout")

    monkeypatch.setattr(device.backend, "import_kv", refuse)
    _, reuse = device.turn([*said, 1], [])
    assert reuse == Reuse(0, 0, reuse.saved_ms)


def test_restoring_makes_room_and_stops_when_there_is_none(tmp_path: Path) -> None:
    device = Device(tmp_path / "kv", n_ctx=500, n_seq=3)
    said, _ = device.turn(tokens(300), tokens(20, 1))
    device.restart()
    device.turn(tokens(250, 2), [])  # idle: may be dropped
    _, reuse = device.turn([*said, 1], [])
    assert reuse.n_disk == 320
    device.restart()
    busy, _ = device.read(tokens(250, 3))
    taken = device.cache.acquire([*said, 1])
    assert taken is not None
    assert 0 < taken[0].n_tokens <= 250, "as much as fits beside the one that is in use"
    assert device.backend.length(busy.seq_id) == 250
    device.stop()


def test_exact_reuses_whole_chunks_that_were_read_and_nothing_else(tmp_path: Path) -> None:
    device = Device(tmp_path / "kv", n_seq=1, exact=True)
    said, _ = device.turn(tokens(200), tokens(100, 1))
    question = [*said, *tokens(30, 2)]
    said, reuse = device.turn(question, tokens(40, 3))
    assert (reuse.n_memory, reuse.n_disk) == (192, 0), "200 tokens were read: three chunks of 64; the reply was decoded"
    device.restart()
    _, reuse = device.turn([*said, 1], [])
    assert (reuse.n_memory, reuse.n_disk) == (0, 320)
    device.restart()
    _, reuse = device.turn([*said[:150], 1, 2, 3], [])
    assert (reuse.n_memory, reuse.n_disk) == (0, 128)
    device.stop()


def test_states_that_can_only_be_kept_whole(tmp_path: Path) -> None:
    device = Device(tmp_path / "kv", kind=Recurrent)
    system, question = tokens(150), tokens(60, 1)
    prompt = [*system, *question]
    boundaries = (150, len(prompt) - 1)
    said, _ = device.turn(prompt, tokens(70, 2), boundaries=boundaries)
    device.restart()
    said, reuse = device.turn([*said, *tokens(10, 3)], [], boundaries=(150, 289))
    assert reuse.n_disk == 280, "the end of a turn"
    device.restart()
    _, reuse = device.turn(prompt, tokens(5, 4), boundaries=boundaries)
    assert reuse.n_disk == 209, "regenerated: the question but for its last token"
    device.restart()
    _, reuse = device.turn([*system, *tokens(40, 5)], [], boundaries=(150, 189))
    assert reuse.n_disk == 150, "the end of the system prompt"
    device.restart()
    _, reuse = device.turn([*system[:149], *tokens(40, 6)], [])
    assert reuse.n_disk == 0
    device.stop()


@pytest.mark.parametrize("kind", [FakeBackend, Recurrent])
@pytest.mark.parametrize("seed", range(4))
def test_any_life_gives_the_logits_of_reading_from_the_start(tmp_path: Path, kind: type[FakeBackend], seed: int) -> None:
    """Turns, forks, edits, restarts, deletions, a small disk and a small memory, at random; `Device.turn` checks the logits."""
    rng = random.Random(seed)
    device = Device(
        tmp_path / "kv", kind=kind, n_ctx=1500, exact=seed == 3, encrypt=seed == 2, budget_bytes=(60_000, 1 << 30)[seed % 2]
    )
    lives = [tokens(rng.randrange(1, 300), seed)]
    n_reused = 0
    for step in range(40):
        before = rng.choice(lives)
        kept = before[: rng.choice([len(before), rng.randrange(len(before) + 1)])]
        prompt = [*kept, *(rng.randrange(3) for _ in range(rng.randrange(1, 200)))]
        if len(prompt) > 1200:
            continue
        at = rng.randrange(len(prompt))
        said, reuse = device.turn(prompt, tokens(rng.randrange(60), step), owner=f"c{step % 5}", boundaries=(at,))
        n_reused += reuse.n_disk
        lives.append(said)
        action = rng.random()
        if action < 0.3:
            device.restart()
        elif action < 0.4:
            device.store.forget(f"c{rng.randrange(5)}")
    device.stop()
    assert n_reused > 0
