"""How tokens are chosen, from the fields by which the protocols say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edge.errors import UsageError
from edge.types import Sampling
from edge_serve import limits
from edge_serve.errors import ApiError

if TYPE_CHECKING:
    from edge.assistant import Assistant

__all__ = ["check_biases", "make_sampling"]


def make_sampling(fields: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Sampling:
    """Return the sampling of a request.

    Args:
        fields: of `edge.Sampling`; None counts as not given.
        names: field -> its name in the request, where that is another; for errors.

    Raises:
        ApiError: a value is out of its range.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    stops = given.get("stop", ())
    stops = (stops,) if isinstance(stops, str) else tuple(stops)
    _check_stops(stops, (names or {}).get("stop", "stop"))
    if len(given.get("logit_bias", {})) > limits.LOGIT_BIASES:
        raise ApiError(400, f"logit_bias takes {limits.LOGIT_BIASES:,} tokens at most.", param="logit_bias")
    if "stop" in given:
        given["stop"] = stops
    try:
        return Sampling(**given)
    except UsageError as error:
        word = error.message.split(" ", 1)[0].partition("[")[0]
        param = (names or {}).get(word, word)
        message = str(error).replace(word, param, 1)
        raise ApiError(400, message, code="invalid_value", param=param if word in given else None) from None


def check_biases(sampling: Sampling, assistant: Assistant) -> None:
    """Check that tokens with a bias are in the vocabulary.

    Raises:
        ApiError: one is not.
    """
    n_vocab = assistant.info.n_vocab
    if any(token >= n_vocab for token in sampling.logit_bias):
        raise ApiError(400, f"logit_bias has a token beyond the {n_vocab:,} of this model.", param="logit_bias")


def _check_stops(stops: Sequence[str], name: str) -> None:
    if len(stops) > limits.STOPS:
        raise ApiError(400, f"{name} takes {limits.STOPS} texts at most, not {len(stops):,}.", code="invalid_value", param=name)
    if any(len(stop) > limits.STOP_CHARS for stop in stops):
        raise ApiError(400, f"A text of {name} has {limits.STOP_CHARS} characters at most.", code="invalid_value", param=name)
