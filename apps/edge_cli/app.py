"""What commands get from outside: settings, and models. Tests put their own in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.config import Settings
    from edge.conversation import ConversationStore
    from edge.device import DeviceProfile
    from edge.device.sensors import Readings
    from edge.kv.store import BlockStore
    from edge.plan import Plan

__all__ = ["App", "pass_app"]


def _load(**options: Any) -> Assistant:
    import edge

    return edge.load(**options)


def _plan(**options: Any) -> Plan:
    import edge

    return edge.plan_model(**options)


def _probe() -> DeviceProfile:
    from edge.device import probe

    return probe()


def _sense() -> Readings:
    from edge.device.sensors import Sensors

    return Sensors().read()


@dataclass(frozen=True)
class App:
    """The runtime as commands see it.

    Attributes:
        load: `edge.load`.
        plan: `edge.plan_model`.
        probe: `edge.device.probe`.
        sense: `edge.device.sensors.Sensors.read`.
    """

    load: Callable[..., Assistant] = _load
    plan: Callable[..., Plan] = _plan
    probe: Callable[[], DeviceProfile] = _probe
    sense: Callable[[], Readings] = _sense

    def settings(self, flags: Mapping[str, object] | None = None, flag_names: Mapping[str, str] | None = None) -> Settings:
        """The merged settings.

        Args:
            flags: dotted key -> value; None is not given.
            flag_names: dotted key -> the flag it came with, for errors.

        Raises:
            ConfigError: one of them is wrong.
        """
        from edge.config import load_settings

        return load_settings(flags, flag_names=flag_names)

    def store(self, settings: Settings) -> ConversationStore:
        """The user's conversations; the caller closes it.

        Raises:
            StorageError: it cannot be opened.
        """
        from edge.conversation import ConversationStore
        from edge.files import make_private_dir
        from edge.kv.open import forget_conversations

        make_private_dir(settings.paths.data_dir)
        return ConversationStore(settings.paths.conversations_file, on_delete=partial(forget_conversations, settings))

    def blocks(self, settings: Settings) -> BlockStore:
        """What is kept on the disk of what models have read; the caller closes it."""
        from edge.kv.open import open_block_store

        return open_block_store(settings)


def pass_app(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the App as its first argument."""
    import functools

    import click

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        app = click.get_current_context().find_root().obj or App()
        return function(app, *args, **options)

    return wrapped
