"""The runtime as commands see it: settings, models, stores. Tests replace it."""

from __future__ import annotations

import importlib
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
    from edge.embedding import Embedder
    from edge.kv.store import BlockStore
    from edge.plan import Plan
    from edge.runtime import Runtime

__all__ = ["App", "pass_app"]


def _lazy(module: str, name: str) -> Callable[..., Any]:
    """Return a function that imports its target when it is called."""
    return lambda *arguments, **options: getattr(importlib.import_module(module), name)(*arguments, **options)


_load, _plan, _probe = _lazy("edge", "load"), _lazy("edge", "plan_model"), _lazy("edge.device", "probe")
_load_embedder = _lazy("edge.embedding", "load_embedder")


@dataclass(frozen=True)
class App:
    """The runtime: `edge.load`, `edge.plan_model`, `edge.device.probe`, `load_embedder` and a reading of the sensors."""

    load: Callable[..., Assistant] = _load
    plan: Callable[..., Plan] = _plan
    probe: Callable[[], DeviceProfile] = _probe
    embedder: Callable[..., Embedder] = _load_embedder
    sense: Callable[[], Readings] = lambda: _lazy("edge.device.sensors", "Sensors")().read()

    def settings(self, flags: Mapping[str, object] | None = None, flag_names: Mapping[str, str] | None = None) -> Settings:
        """Return the merged settings.

        Args:
            flags: dotted key -> value; None counts as not given.
            flag_names: dotted key -> the flag that set it, for errors.

        Raises:
            ConfigError: one of them is wrong.
        """
        from edge.config import load_settings

        return load_settings(flags, flag_names=flag_names)

    def runtime(self, settings: Settings) -> Runtime:
        """Return a runtime of several models, as the settings of the server say; the caller closes it."""
        from edge.runtime import Runtime

        return Runtime(
            settings=settings,
            memory_gb=settings.server.memory_gb,
            idle_s=settings.server.idle_s,
            load=self.load,
            plan=self.plan,
            load_embedder=self.embedder,
        )

    def store(self, settings: Settings) -> ConversationStore:
        """Return the user's conversations; the caller closes the store.

        Raises:
            StorageError: it cannot be opened.
        """
        from edge.conversation import ConversationStore
        from edge.files import make_private_dir
        from edge.kv.open import forget_conversations

        make_private_dir(settings.paths.data_dir)
        return ConversationStore(settings.paths.conversations_file, on_delete=partial(forget_conversations, settings))

    def blocks(self, settings: Settings) -> BlockStore:
        """Return the on-disk KV cache; the caller closes it."""
        from edge.kv.open import open_block_store

        return open_block_store(settings)


def pass_app(function: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the App to a command as its first argument."""
    import functools

    import click

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        app = click.get_current_context().find_root().obj or App()
        return function(app, *args, **options)

    return wrapped
