"""What the engine asks of a schema or grammar while a reply is generated: the protocol `Matcher`.

`edge.structured` implements it. A matcher belongs to one reply and is used by the engine thread alone, so all of it must be
quick: a mask takes some tens of microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edge.backends.base import Mask

__all__ = ["Matcher"]


class Matcher(Protocol):
    """A reply so far, and how its schema or grammar lets it go on."""

    @property
    def is_complete(self) -> bool:
        """True if the reply may end here."""
        ...

    @property
    def is_over(self) -> bool:
        """True if the reply has to end here: no token may follow."""
        ...

    def allowed(self) -> Mask | None:
        """Return the tokens that may come next, None if that is all of them. The array may be overwritten by the next call.

        End tokens are among them exactly where `is_complete` is true.

        Raises:
            ConstraintError: the grammar turned out to be too complex here.
        """
        ...

    def accept(self, token: int) -> None:
        """Go on with a token that is not an end token.

        Raises:
            ConstraintError: it is not allowed here, or as `allowed`.
        """
        ...

    def n_valid(self, tokens: Sequence[int]) -> int:
        """Return how many of these tokens may come next, one after the other. Nothing changes."""
        ...

    def forced(self) -> Sequence[int]:
        """Return the tokens that must come next, because the text has no other way to go on. Nothing changes."""
        ...
