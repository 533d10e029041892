from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chat_app import fake_app, settle


async def test_the_chat_runs_in_a_directory_that_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    app = fake_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert not app.cwd.is_absolute()


async def test_settle_waits_for_messages_that_follow_from_messages() -> None:
    """As on a busy machine: each part of the app is slow to get its turn, and uses no processor time meanwhile."""
    app = fake_app()
    done: list[str] = []
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        chat = app.chat_screen
        stations = [chat.composer.input, chat.composer, chat.status, chat.transcript, chat, app]

        async def travel(station: int) -> None:
            await asyncio.sleep(0.1)
            done.append(type(stations[station]).__name__)
            if station + 1 < len(stations):
                stations[station + 1].call_later(travel, station + 1)

        stations[0].call_later(travel, 0)
        await settle(pilot)
        assert len(done) == len(stations)


async def test_settle_waits_for_the_draft_to_be_saved() -> None:
    app = fake_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.chat_screen.composer.load("half a thought")
        await settle(pilot)
        assert app.library._store is not None
        assert "half a thought" in app.library._store.list()[0].draft
