"""`edge kv warm`, with a fake model on a real block store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.assistant import Assistant, DiskCache
from edge.backends.fake import FakeBackend
from edge.kv.blocks import fingerprint
from edge.kv.open import open_block_store
from edge_cli.app import App
from edge_cli.progress import TokenProgress

Call = Callable[..., Any]
MODEL = fingerprint({"weights": "a"})


def app_with(**backend: Any) -> App:
    def load(*, settings: Any, store: Any, on_progress: Any) -> Assistant:
        disk = DiskCache(open_block_store(settings), MODEL) if settings.kv.enabled else None
        return Assistant(FakeBackend(**backend), store=store, sampling=settings.sampling, disk=disk)

    return App(load=load)


@pytest.fixture
def app() -> App:
    return app_with()


@pytest.fixture
def manual(tmp_path: Path) -> str:
    path = tmp_path / "manual.md"
    path.write_text("Press the green button to begin, and the red one to end. " * 10)
    return str(path)


def restored(call: Call, app: App, *arguments: str, stdin: bytes | None = None) -> int:
    found = call("run", "--json", *arguments, app=app, stdin=stdin)
    assert found.code == 0, found.err
    return int(json.loads(found.out)["usage"]["n_restored"])


def test_a_document_is_found_by_run(call: Call, app: App, manual: str) -> None:
    result = call("kv", "warm", manual, "--system", "Be brief.", app=app)
    assert (result.code, result.out) == (0, "")
    assert "stored and pinned" in result.err
    assert restored(call, app, "-f", manual, "--system", "Be brief.", "How does it begin?") > 570
    assert restored(call, app, "-f", manual, "How does it begin?") < 50, "another system prompt"
    shown = call("kv", "ls").out
    assert "prefilled ahead (warm:manual.md)" in shown
    assert "pinned" in shown


def test_what_it_says_as_json(call: Call, app: App, manual: str) -> None:
    first = json.loads(call("kv", "warm", manual, "--json", app=app).out)
    again = json.loads(call("kv", "warm", manual, "--json", app=app).out)
    assert first["name"] == "manual.md"
    assert first["n_computed"] == first["n_tokens"] == first["n_stored"] > 570
    assert first["n_reused"] == 0
    assert (again["n_computed"], again["n_restored"]) == (1, first["n_tokens"] - 1)
    assert (first["is_pinned"], first["is_complete"]) == (True, True)
    assert first["size_bytes"] == again["size_bytes"] > 1000


def test_stdin_is_the_beginning_of_the_message(call: Call, app: App) -> None:
    text = b"Translate every word of what follows into French, and leave out nothing at all: "
    for number, arguments in enumerate((["--name", "French"], [])):
        text += str(number).encode()
        assert call("kv", "warm", *arguments, app=app, stdin=text).code == 0
        assert restored(call, app, stdin=text + b"hello") > 70
    shown = call("kv", "ls").out
    assert "warm:French" in shown
    assert "warm:stdin" in shown


def test_a_conversation_is_warmed_up_to_its_next_message(call: Call, app: App) -> None:
    with app.store(app.settings()) as store, app.load(settings=app.settings(), store=store, on_progress=None) as ai:
        conversation = ai.conversation(system="You are a pirate of the seven seas.")
        conversation.send("Tell me about the treasure island, captain.").wait()
    call("kv", "clear")
    assert call("kv", "warm", "--conversation", conversation.id[:10], app=app).code == 0
    assert restored(call, app, "--conversation", conversation.id, "Go on.") > 100
    assert call("kv", "warm", "--conversation", "nothing", app=app).code == 2


def test_it_may_be_evicted_if_not_pinned(call: Call, app: App, manual: str) -> None:
    assert "pinned" not in call("kv", "warm", "--no-pin", manual, app=app).err
    assert "pinned" not in call("kv", "ls").out
    call("kv", "warm", manual, "--name", "now pinned", app=app)
    assert "pinned" in call("kv", "ls").out


def test_it_stays_until_it_is_forgotten(call: Call, app: App, manual: str) -> None:
    call("kv", "warm", manual, app=app)
    call("kv", "gc", "--gone")
    call("kv", "forget", "warm:manual.md")
    assert "warm:manual.md" not in call("kv", "ls").out, "used by nobody, and still pinned"
    assert "pinned" in call("kv", "ls").out
    call("kv", "warm", manual, app=app)
    call("kv", "unpin", "warm:manual.md")
    call("kv", "gc", "--gone")
    assert "prefilled ahead" in call("kv", "ls").out
    call("kv", "forget", "warm:manual.md")
    assert call("kv", "ls").out == ""


def test_ctrl_c_keeps_what_is_done(call: Call, manual: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: TokenProgress, done: int, total: int) -> None:
        if done >= 256:
            raise KeyboardInterrupt

    slow = app_with(prefill_delay_s=0.05)
    with monkeypatch.context() as patch:
        patch.setattr(TokenProgress, "report", interrupt)
        result = call("kv", "warm", manual, "--json", app=slow)
    found = json.loads(result.out)
    assert (result.code, found["is_complete"]) == (130, False)
    assert 256 <= found["n_stored"] < found["n_tokens"] or found["n_tokens"] == 0
    rest = json.loads(call("kv", "warm", manual, "--json", app=slow).out)
    assert rest["n_restored"] >= 256
    assert rest["n_stored"] == rest["n_tokens"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to process ahead"),
        (["missing.md"], "cannot be read"),
        (["-", "-"], "cannot be read twice"),
        (["--no-stdin"], "nothing to process ahead"),
        (["--conversation", "a", "--system", "b"], "exclude each other"),
        (["--system", "x", "-s", "kv.enabled=false"], "turned off"),
    ],
)
def test_what_is_refused(call: Call, app: App, arguments: list[str], said: str) -> None:
    result = call("kv", "warm", *arguments, app=app)
    assert result.code == 2
    assert said in result.err


def test_a_file_that_is_no_text_or_too_long_is_refused(call: Call, app: App, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0\1\2")
    (tmp_path / "b.txt").write_text("word " * 10_000)
    for name in ("a.bin", "b.txt"):
        result = call("kv", "warm", str(tmp_path / name), app=app)
        assert result.code in (1, 2)
        assert result.err.startswith("Error:")


def test_a_short_prompt_is_not_worth_a_file(call: Call, app: App) -> None:
    result = call("kv", "warm", app=app, stdin=b"x")
    assert (result.code, "not worth a file" in result.err) == (0, True)


def test_a_cache_that_is_off_fails(call: Call, app: App, manual: str) -> None:
    directory = app.settings().paths.kv_dir
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.write_text("in the way")
    result = call("kv", "warm", manual, app=app)
    assert (result.code, "cache is off" in result.err) == (1, True)


def test_its_pin_may_end(call: Call, app: App, manual: str) -> None:
    assert "pinned for 7 days" in call("kv", "warm", manual, "--days", "7", app=app).err
    assert "pinned until" in call("kv", "ls").out
    assert call("kv", "warm", manual, "--days", "7", "--no-pin", app=app).code == 2


def test_a_document_may_come_from_stdin(call: Call, app: App) -> None:
    text = b"Apples are red, and pears are green. " * 10
    assert call("kv", "warm", "-", app=app, stdin=text).code == 0
    assert restored(call, app, "-f", "-", "Which are red?", stdin=text) > 350
    assert "warm:stdin" in call("kv", "ls").out


@pytest.mark.parametrize("cache", ["off", "memory", "disk", "keep"])
def test_run_says_where_the_cache_of_a_prompt_stays(call: Call, app: App, cache: str) -> None:
    assert call("run", "--cache", cache, "Tell me about the apples and pears in the garden.", app=app).code == 0
    blocks = json.loads(call("kv", "ls", "--blocks", "--json").out)
    assert bool(blocks) == (cache in ("disk", "keep"))
    assert all(block["is_pinned"] == (cache == "keep") for block in blocks)
    assert call("run", "--cache", "keep", "-s", "kv.enabled=false", "hi", app=app).code == 2
