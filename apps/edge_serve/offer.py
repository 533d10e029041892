"""The models that the server offers: their names, and how a request's `model` becomes one of them."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge.errors import EdgeError
from edge.formats.facts import is_for_embeddings
from edge.formats.gguf import read_header
from edge_serve.errors import ApiError

if TYPE_CHECKING:
    from edge.catalog import Installed
    from edge.config import Settings

__all__ = ["Offer", "Offered"]

_FRESH_S = 5.0
_MOST_NAMED = 30


@dataclass(frozen=True, slots=True)
class Offered:
    """A model that can be asked for.

    Attributes:
        id: its name in answers and lists.
        reference: what the runtime loads.
        size_bytes: of its files; 0 if unknown.
        modified: when it was put there, in seconds since 1970.
        format, quantisation, sha256: as in `edge.catalog.Installed`.
        task: "chat", or "embeddings" for a model that makes vectors and generates no text.
    """

    id: str
    reference: str
    size_bytes: int = 0
    modified: int = 0
    format: str = "gguf"
    quantisation: str = ""
    sha256: str = ""
    task: Literal["chat", "embeddings"] = "chat"


@dataclass
class Offer:
    """The default model and all that are installed.

    Args:
        settings: `settings.model` is the default.
        list_installed: lists the models of this device.
        more: other models that the server was started with.
    """

    settings: Settings
    list_installed: Callable[[Settings], Iterable[Installed]]
    more: tuple[str, ...] = ()
    _names: dict[str, Offered] = field(init=False, default_factory=dict)
    _read_at: float = field(init=False, default=float("-inf"))

    async def models(self) -> list[Offered]:
        """Return all of them, the default first."""
        await self._refresh()
        return list(dict.fromkeys(self._names.values()))

    async def find(self, name: str | None) -> Offered:
        """Return the model of a request; the default one if it names none.

        Raises:
            ApiError: there is no such model here.
        """
        name = name or self.settings.model
        found = self._look_up(name)
        if found is None:  # only then: listing takes a tenth of a second
            await self._refresh()
            found = self._look_up(name)
        if found is None:
            names = [model.id for model in dict.fromkeys(self._names.values())]
            listed = ", ".join(names[:_MOST_NAMED]) + (" and others" if len(names) > _MOST_NAMED else "")
            message = f"There is no model {name[:100]!r} here. Use one of: {listed}. Others are added by edge models pull."
            raise ApiError(404, message, code="model_not_found", param="model")
        return found

    def _look_up(self, name: str) -> Offered | None:
        return self._names.get(name) or self._names.get(name.removesuffix(":latest"))

    async def _refresh(self) -> None:
        """Read the names again, when that was some seconds ago."""
        if time.monotonic() - self._read_at > _FRESH_S:
            self._names = await asyncio.to_thread(self._read)
            self._read_at = time.monotonic()

    def _read(self) -> dict[str, Offered]:
        names: dict[str, Offered] = {}
        references: dict[str, Offered] = {}
        places: dict[Path, Offered] = {}
        for one in self.list_installed(self.settings):
            offered = _offered(one)
            for name in (one.name, *one.used_by):
                names.setdefault(name, offered)
            references.setdefault(one.reference, names[one.name])
            places.setdefault(one.path.resolve(), names[one.name])
        names.pop("default", None)
        first: dict[str, Offered] = {}
        for model in (self.settings.model, *self.more):
            path = Path(model)
            name = path.stem if path.suffix == ".gguf" else path.name
            offered = names.get(model) or references.get(model) or places.get(path.resolve()) or Offered(name, model)
            first.setdefault(model, offered)
            first.setdefault(offered.id, offered)
        return first | {name: one for name, one in names.items() if name not in first}


def _offered(one: Installed) -> Offered:
    try:
        modified = int(one.path.stat().st_mtime)
    except OSError:
        modified = 0
    task: Literal["chat", "embeddings"] = "chat"
    if one.format == "gguf" and _is_for_embeddings(one.path, one.size_bytes, modified):
        task = "embeddings"
    return Offered(one.name, one.name, one.size_bytes, modified, one.format, one.quantisation, one.sha256 or "", task)


@functools.lru_cache(maxsize=1000)
def _is_for_embeddings(path: Path, size_bytes: int, modified: int) -> bool:
    """Tell what a file is for, once for each version of it: its header takes up to a tenth of a second."""
    try:
        return is_for_embeddings(read_header(path))
    except EdgeError:
        return False  # loading it says what is wrong
