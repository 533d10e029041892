"""The next tier of a model, from its settings: a larger model on this device, or a server."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from edge.errors import BackendError

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.config.schema import Settings
    from edge.tiers.base import Consent, Tier
    from edge.tiers.escalation import Escalation
    from edge.tiers.remote import RemoteTier
    from edge.tiers.router import Route

__all__ = ["HoldModel", "OwnModel", "check_escalation", "make_escalation"]

HoldModel: TypeAlias = "Callable[[str], AbstractContextManager[Assistant]]"
"""Holds a model by its name for the time of an answer, as `Runtime.use` does."""


def make_escalation(
    settings: Settings, own: Callable[[str], OwnModel], hold: HoldModel | None, route: Route | None, consent: Consent | None
) -> Escalation | None:
    """Return the next tier that the settings name; None if they name none, or the model itself.

    Args:
        settings: settings and arguments.
        own: returns a larger model that belongs to the first one.
        hold: instead of that.
        route, consent: as in `edge.load`.

    Raises:
        UsageError: an address, a rule or an argument is wrong, or there is no model of that name.
        ConfigError: the key cannot be used.
        EdgeError: as `own`.
    """
    wanted = settings.escalation
    if wanted.to is None or wanted.to == settings.model:
        return None
    from edge.tiers.address import PREFIX
    from edge.tiers.escalation import Escalation
    from edge.tiers.router import Router

    router = Router.of(wanted, route)
    agreed: Consent | None = "always" if wanted.consent == "always" else None
    tier = _server(settings) if wanted.to.startswith(PREFIX) else _model(wanted.to, settings, own, hold)
    return Escalation(tier, router, agreed if consent is None else consent, sampling=settings.sampling)


def check_escalation(settings: Settings) -> str:
    """Check the next tier of a program that can ask nobody, such as a server, and return what is to be said of it.

    Raises:
        As `make_escalation`, but for `own`.
    """
    wanted = settings.escalation
    if wanted.to is None:
        return ""
    from edge.tiers.address import PREFIX
    from edge.tiers.router import Router

    Router.of(wanted)
    if not wanted.to.startswith(PREFIX):
        _check_model(wanted.to, settings)
        return ""
    host = _server(settings).address.host
    if wanted.consent == "always":
        return f"What the router sends on goes to {host}."
    return f"Nothing will be sent to {host}, since nobody can be asked. To agree to all of it: --consent always"


def _server(settings: Settings) -> RemoteTier:
    from edge.tiers.address import read_address, read_key
    from edge.tiers.remote import RemoteTier

    address = read_address(settings.escalation.to or "")
    return RemoteTier(address, read_key(address, settings.escalation.key_file), silence_s=settings.escalation.silence_s)


def _model(name: str, settings: Settings, own: Callable[[str], OwnModel], hold: HoldModel | None) -> Tier:
    from edge.tiers.local import LocalTier

    _check_model(name, settings)
    if hold is not None:
        return LocalTier(name, partial(hold, name))
    model = own(name)
    return LocalTier(name, model.hold, model.close)


def _check_model(name: str, settings: Settings) -> None:
    from edge.catalog import check_reference

    check_reference(name, settings)


class OwnModel:
    """A larger model that is loaded when it is first needed, and stays until it is closed.

    Args:
        load: loads it; its argument returns whether that should go on.
    """

    def __init__(self, load: Callable[[Callable[[], bool]], Assistant]) -> None:
        self._load = load
        self._assistant: Assistant | None = None
        self._loading = threading.Lock()
        self._is_closed = False

    @contextlib.contextmanager
    def hold(self) -> Iterator[Assistant]:
        """Hold the model.

        Raises:
            BackendError: it is closed.
            EdgeError: it cannot be loaded.
        """
        with self._loading:
            if self._is_closed:
                raise BackendError("The larger model is closed.", "Load the model again.")
            if self._assistant is None:
                self._assistant = self._load(lambda: not self._is_closed)
        yield self._assistant

    def close(self) -> None:
        """Stop loading, or free the model. May be called twice."""
        self._is_closed = True
        with self._loading:
            assistant, self._assistant = self._assistant, None
        if assistant is not None:
            assistant.close()
