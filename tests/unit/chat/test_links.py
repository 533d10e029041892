from __future__ import annotations

import pytest

from edge.backends.fake import FakeBackend
from edge_chat.widgets import markdown
from edge_chat.widgets.markdown import ReplyMarkdown, has_desktop
from tests.chat_app import eventually, fake_app, say, settle

ADDRESSES = {
    "https://example.org/a?b=c#d": True,
    "HTTP://example.org": True,
    "mailto:somebody@example.org": True,
    "file:///etc/passwd": False,
    "vscode://open?x": False,
    "javascript:alert(1)": False,
    "-https://example.org": False,
    "--new-window": False,
    "/bin/sh": False,
    "https:example.org": False,
    " https://example.org": False,
    "mailto:--attach": False,
    "": False,
}


async def test_only_addresses_of_pages_and_letters_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "has_desktop", lambda: True)
    app = fake_app(lambda: FakeBackend(script=lambda message: "A [link](https://example.org).", n_ctx=8192))
    opened: list[str] = []
    monkeypatch.setattr(app, "open_url", opened.append)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "x")
        shown = app.chat_screen.query(ReplyMarkdown).last()
        for address, is_opened in ADDRESSES.items():
            opened.clear()
            app.clear_notifications()
            shown.action_link(address)
            assert opened == ([address] if is_opened else [])
            assert app.clipboard == address
            await eventually(pilot, lambda: list(app._notifications))
            said = [notification.message for notification in app._notifications]
            assert any(address in message for message in said)
            assert any("was not opened" in message for message in said) is not is_opened, address


def test_where_there_is_a_desktop() -> None:
    assert has_desktop(["DISPLAY"], "linux") and has_desktop([], "darwin")
    assert not has_desktop([], "linux") and not has_desktop(["DISPLAY", "SSH_CONNECTION"], "linux")
