"""A message on the screen, before it is composed and after."""

from __future__ import annotations

from edge_chat.widgets.message import MessageView
from tests.chat_app import fake_app, settle


async def test_a_reply_may_go_on_before_its_message_is_composed() -> None:
    app = fake_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        view = MessageView("assistant", "On", "Fake")
        await view.extend("Once upon")
        await view.extend("Once upon a time")
        await app.chat_screen.transcript.add(view)
        await settle(pilot)
        assert view.markdown.source == "Once upon a time"
        await view.finish("Once upon a time.")
        assert view.markdown.source == "Once upon a time."
