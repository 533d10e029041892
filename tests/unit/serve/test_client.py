"""The other end of a request: what is waited for while it is there."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from edge_serve.client import Client
from edge_serve.errors import ClientGoneError


async def test_what_is_given_up_when_the_client_goes_leaves_no_error_behind() -> None:
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGoneError):
        await Client(gone).race(asyncio.gather(asyncio.sleep(60), asyncio.sleep(60)))
    gc.collect()
    await asyncio.sleep(0)
    assert said == []
