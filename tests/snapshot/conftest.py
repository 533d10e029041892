"""Stores that the pictures are made from are closed, keys take the time they take, and no terminal chooses the colours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chat_app import closing_stores, patient_keys


@pytest.fixture(autouse=True)
def true_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "truecolor")


@pytest.fixture(autouse=True)
def closed_stores() -> Iterator[None]:
    with closing_stores(), patient_keys():
        yield
