"""No test of the chat may pass while the app reports a bug of its own, or depend on the machine's speed or its terminal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge.errors import EdgeError
from edge_chat.app import ChatApp
from tests.chat_app import closing_stores, patient_keys


@pytest.fixture(autouse=True)
def true_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "truecolor")


@pytest.fixture(autouse=True)
def closed_stores() -> Iterator[None]:
    with closing_stores(), patient_keys():
        yield


@pytest.fixture(autouse=True)
def no_bugs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    found: list[BaseException] = []
    report = ChatApp.report_bug

    def report_and_remember(app: ChatApp, bug: BaseException) -> EdgeError:
        found.append(bug)
        return report(app, bug)

    monkeypatch.setattr(ChatApp, "report_bug", report_and_remember)
    yield found
    for bug in found:
        raise bug
