"""Values that steps write as JSON for later steps and for the manifest."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge.files import parse_json, read_bytes

__all__ = ["Choice", "HeldOut", "Provenance", "Report", "read_provenance"]

_MAX_BYTES = 4 << 20


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Layers that stay. Written beside the student that is cut.

    Attributes:
        kept: their numbers in the teacher.
        reason: how they were chosen.
        influence: of each of the teacher's layers, where it was measured.
        repaired: number of matrices that were fitted.
    """

    kept: tuple[int, ...]
    reason: str
    influence: tuple[float, ...] = ()
    repaired: int = 0


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Origin and size of one text.

    Attributes:
        name: in the recipe.
        origin: file or package, or that the teacher wrote it.
        licence: from the recipe.
        n_tokens: to train on.
        n_held_out: tokens that are held out.
    """

    name: str
    origin: str
    licence: str
    n_tokens: int
    n_held_out: int


class HeldOut(msgspec.Struct, frozen=True, kw_only=True):
    """Quality of a student on one text that it was not trained on.

    Attributes:
        divergence: mean KL(teacher || student) in nats.
        top1: share of positions where both prefer the same token.
    """

    divergence: float
    top1: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a training.

    Attributes:
        steps: taken.
        tokens: read in them, repeated ones included.
        seconds: of training, without measuring.
        device: that computed it, as torch names it.
        before, after: held-out text -> quality of the student.
        course: (seconds, mean held-out divergence) on a part of these texts, along the way.
    """

    steps: int
    tokens: int
    seconds: float
    before: dict[str, HeldOut]
    after: dict[str, HeldOut]
    course: tuple[tuple[float, float], ...]
    device: str = "cpu"

    @property
    def is_nearer(self) -> bool:
        """Whether the held-out divergence fell; true if nothing was held out."""
        before, after = (sum(held.divergence for held in part.values()) for part in (self.before, self.after))
        return not self.after or after < before

    def describe_held_out(self) -> str:
        """Return how the divergence on each held-out text changed, for a manifest; "" if nothing was held out."""
        return "; ".join(
            f"{name} {self.before[name].divergence:.3f} to {self.after[name].divergence:.3f}" for name in sorted(self.after)
        )


def read_provenance(path: Path) -> list[Provenance]:
    """Read the corpus.json of a corpus.

    Raises:
        ModelFileError: it is missing or damaged.
    """
    return parse_json(path, read_bytes(path, _MAX_BYTES), list[Provenance])
