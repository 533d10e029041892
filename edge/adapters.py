"""LoRA adapters: small changes to the weights of a model, applied while it computes, each at a scale.

Those that a model was loaded with have a number, from 0 up, and a name. What a reply is computed with is a `Mix`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edge.errors import UsageError, kind_of
from edge.files import exists, expand_user
from edge.units import short_name

__all__ = [
    "MAX_SCALE",
    "Adapter",
    "Lora",
    "Mix",
    "check_lora",
    "check_scale",
    "default_mix",
    "mix_text",
    "read_mix",
    "split_scale",
]

MAX_SCALE = 100.0
"""Largest scale; also of negative ones, which take away what an adapter was trained for."""

Mix = tuple[tuple[int, float], ...]
"""What a reply is computed with: (number of an adapter, its scale), by number, without those at 0. () is the model alone."""

Lora = Mapping[str, float] | Sequence[str]
"""How programs write a mix: names with scales, or a list of "NAME" and "NAME:SCALE"; an empty one is the model alone."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that a model is loaded with.

    Attributes:
        name: its name in this model; no two have the same.
        path: its GGUF file.
        scale: at which it is applied unless a conversation or a call says another; 0 leaves it out.
        sha256: of the file.
        size_bytes: of its matrices.
        rank: the largest of its pairs of matrices.
        n_changed: matrices of the model that it changes.
    """

    name: str
    path: Path
    scale: float
    sha256: str
    size_bytes: int
    rank: int
    n_changed: int

    @property
    def text(self) -> str:
        """Its name, and its scale if that is not 1: "pirate at 0.5"."""
        return _at(self.name, self.scale)


def split_scale(text: str | os.PathLike[str]) -> tuple[Path, float]:
    """Split "FILE[:SCALE]" into the path and the scale, which is 1 if it is left out.

    Raises:
        UsageError: there is no path, or the scale is out of range.
    """
    if not isinstance(text, str):
        return expand_user(text), 1.0
    file, colon, number = text.rpartition(":")
    if not colon or exists(expand_user(text)):
        file, number = text, "1"
    try:
        scale = float(number)
    except ValueError:  # the colon is part of the path
        file, scale = text, 1.0
    if not file:
        raise UsageError("An adapter has no path.", "Write FILE or FILE:SCALE, such as pirate.gguf:0.5.")
    return expand_user(file), check_scale(file, scale)


def check_lora(lora: object) -> tuple[str, ...] | None:
    """Return the adapters that a program loads a model with, each FILE[:SCALE]; None where it says nothing.

    Raises:
        UsageError: it is not a list of texts or paths.
    """
    if lora is None:
        return None
    given: Sequence[object] = lora if isinstance(lora, Sequence) and not isinstance(lora, str | bytes) else (None,)
    if all(isinstance(one, str | os.PathLike) for one in given):
        return tuple(str(one) for one in given)
    raise UsageError(f"lora is a list of adapters, not {kind_of(lora)}.", 'For example: lora=["pirate.gguf:0.5"]')


def check_scale(name: str, scale: object) -> float:
    """Return a scale as a float.

    Raises:
        UsageError: it is not a number, or out of range.
    """
    if isinstance(scale, int | float) and not isinstance(scale, bool) and -MAX_SCALE <= scale <= MAX_SCALE:
        return float(scale)
    raise UsageError(
        f"{short_name(str(name))} cannot be applied at {str(scale)[:20]}.",
        f"A scale is a number from {-MAX_SCALE:g} to {MAX_SCALE:g}; 1 is as it was trained.",
    )


def default_mix(adapters: Sequence[Adapter]) -> Mix:
    """Return the mix of replies that ask for none."""
    return tuple((number, adapter.scale) for number, adapter in enumerate(adapters) if adapter.scale)


def read_mix(lora: Lora, adapters: Sequence[Adapter]) -> Mix:
    """Return the mix that a program asks for.

    Args:
        lora: see there. A name without a scale has that at which it was loaded; 1 if that is 0.
        adapters: of the model.

    Raises:
        UsageError: the model has no such adapter, one is named twice, or a scale is out of range.
    """
    by_name = {adapter.name: (number, adapter) for number, adapter in enumerate(adapters)}
    scales: dict[int, float] = {}
    for name, wanted in lora.items() if isinstance(lora, Mapping) else _pairs(lora, by_name):
        if name not in by_name:
            some = f"It has: {', '.join(by_name)}."
            known = some if by_name else "Load it with some: --lora FILE, or edge.load(lora=[FILE])."
            raise UsageError(f"This model has no adapter {short_name(str(name))!r}.", known)
        number, adapter = by_name[name]
        if number in scales:
            raise UsageError(f"The adapter {name} is named twice.", "Name it once, at one scale.")
        scales[number] = (adapter.scale or 1.0) if wanted is None else check_scale(name, wanted)
    return tuple((number, scale) for number, scale in sorted(scales.items()) if scale)


def mix_text(mix: Mix, adapters: Sequence[Adapter]) -> str:
    """Return a mix for people: "pirate at 0.5, formal"; "" for the model alone."""
    return ", ".join(_at(adapters[number].name, scale) for number, scale in mix)


def _pairs(lora: Sequence[str], known: Mapping[str, object]) -> Iterable[tuple[str, float | None]]:
    if isinstance(lora, str | bytes) or not isinstance(lora, Sequence):
        raise UsageError(f"lora is a list of adapters, not {kind_of(lora)}.", 'For example: {"pirate": 0.5}, or ["pirate:0.5"]')
    for one in lora:
        name, colon, number = str(one).rpartition(":")
        if colon and one not in known:
            with suppress(ValueError):
                yield name, float(number)
                continue
        yield str(one), None


def _at(name: str, scale: float) -> str:
    return name if scale == 1 else f"{name} at {scale:g}"
