"""Stores that the pictures are made from are closed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_chat.testing import closing_stores


@pytest.fixture(autouse=True)
def closed_stores() -> Iterator[None]:
    with closing_stores():
        yield
