"""The rotary embedding of old (rope_theta, rope_scaling) and new (rope_parameters) config.json files.

Source: `transformers.modeling_rope_utils`, for the parameters of each kind and their defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from edge.errors import ModelFileError

if TYPE_CHECKING:
    from edge_convert.architectures import Architecture

__all__ = ["Rope", "read_rope", "wrong_config"]

_OPTIONAL = {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
# Kind -> the numbers that it needs, and those that it may have. Any other key would change the arithmetic unseen.
_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, {"original_max_position_embeddings"}),
    "yarn": ({"factor"}, {"original_max_position_embeddings", *_OPTIONAL}),
    "longrope": ({"short_factor", "long_factor"}, {"factor", "attention_factor", "original_max_position_embeddings"}),
}
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"}
_LARGEST = 1e9


class Rope(msgspec.Struct, frozen=True):
    """A rotary embedding.

    Attributes:
        theta: base of the frequencies.
        kind: "default", "linear", "llama3", "yarn" or "longrope".
        scaling: the parameters of that kind.
        partial: share of a head that is rotated.
        local_theta: base in the layers with a sliding window, where it differs.
        original_context: positions of the training before they were scaled.
        attention_factor: by which yarn and longrope multiply cosines and sines; 1 for the other kinds.
    """

    theta: float
    kind: str
    scaling: dict[str, Any]
    partial: float = 1.0
    local_theta: float | None = None
    original_context: int = 0
    attention_factor: float = 1.0


def read_rope(fields: Any, architecture: Architecture, head_dim: int, where: str) -> Rope:
    """Read the rotary embedding of a config.json.

    Args:
        fields: its typed values, see edge_convert.model_config.
        architecture: that it names.
        head_dim: width of a head.
        where: the checkpoint, for messages.

    Raises:
        ModelFileError: its scaling is unknown, lacks a number, or has one that edge does not know.
    """
    parameters = fields.rope_scaling or fields.rope_parameters or {}
    local: Mapping[str, Any] = {}
    local_theta = fields.rope_local_base_freq
    if architecture.local_theta:
        nested = {"full_attention", "sliding_attention"} & set(parameters)
        local = parameters.get("sliding_attention") or {} if nested else {}
        parameters = parameters.get("full_attention") or {} if nested else parameters
        if not isinstance(local, dict) or not isinstance(parameters, dict):
            raise wrong_config(where, "rope_parameters of a kind of layer are no table")
        if _kind(local) != "default":
            raise wrong_config(where, "the positions of the layers with a sliding window are scaled")
        _check_keys(local, "default", where)
        local_theta = _number(local, "rope_theta", where) or local_theta or architecture.local_theta
    kind = _kind(parameters)
    if architecture.gguf == "phi3":  # transformers reads "yarn" in its old configs so, too
        kind = {"yarn": "longrope"}.get(kind, kind)
    known = ("default", "longrope") if architecture.gguf == "phi3" else tuple(_KEYS)
    if kind not in known:
        raise wrong_config(where, f"its positions are scaled by {kind[:40]!r}, and edge knows {', '.join(known)}")
    _check_keys(parameters, kind, where)
    partial = _number(parameters, "partial_rotary_factor", where) or fields.partial_rotary_factor or 1.0
    if partial != 1.0 and architecture.gguf != "phi3":
        raise wrong_config(where, f"partial_rotary_factor is {partial}, which transformers ignores in a {architecture.title}")
    n_rotated = int(head_dim * partial)
    if partial > 1.0 or n_rotated < 2 or n_rotated % 2:
        raise wrong_config(where, f"{n_rotated} of the {head_dim} numbers of a head are rotated")
    theta = _number(parameters, "rope_theta", where) or fields.rope_theta or architecture.theta
    if kind == "dynamic":  # scaled beyond the first context only, where the model ends here
        kind, parameters = "default", {}
    original = _original_context(fields, parameters, where)
    numbers = {
        key: _factors(parameters, key, n_rotated // 2, where) if key.endswith("g_factor") or key == "short_factor" else value
        for key, value in parameters.items()
    }
    return Rope(
        theta=theta,
        kind=kind,
        scaling=numbers,
        partial=partial,
        local_theta=local_theta if architecture.local_theta else None,
        original_context=original,
        attention_factor=_attention_factor(kind, parameters, fields.max_position_embeddings, original),
    )


def _kind(parameters: Mapping[str, Any]) -> str:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    return {"su": "longrope"}.get(kind, kind) if isinstance(kind, str) else str(kind)


def _check_keys(parameters: Mapping[str, Any], kind: str, where: str) -> None:
    """Refuse parameters that are missing, unknown or no positive numbers."""
    needed, optional = _KEYS[kind]
    missing = sorted(key for key in needed if parameters.get(key) is None)
    if missing:
        raise wrong_config(where, f"rope_parameters of the kind {kind} lack {missing[0]}")
    unknown = sorted(key for key, value in parameters.items() if value is not None and key not in needed | optional | _COMMON)
    if unknown:
        raise wrong_config(where, f"rope_parameters of the kind {kind} have {unknown[0]!r}, which edge does not know")
    for key in (needed | optional) - {"truncate", "short_factor", "long_factor"}:
        _number(parameters, key, where)
    if parameters.get("truncate") not in (None, True, False):
        raise wrong_config(where, "rope_parameters.truncate is neither true nor false")


def _number(parameters: Mapping[str, Any], key: str, where: str) -> float | None:
    """Return a positive number, None where it is missing or null."""
    value = parameters.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
        raise wrong_config(where, f"rope_parameters.{key} is {str(value)[:40]!r}, not a positive number")
    return float(value)


def _factors(parameters: Mapping[str, Any], key: str, n: int, where: str) -> list[float]:
    """Return the factors of longrope, one for each rotated pair."""
    values = parameters[key]
    if not isinstance(values, list) or len(values) != n:
        raise wrong_config(where, f"rope_parameters.{key} is not a list of {n} numbers")
    return [_number({key: value}, key, where) or 1.0 for value in values]


def _original_context(fields: Any, parameters: Mapping[str, Any], where: str) -> int:
    given = fields.original_max_position_embeddings or _number(parameters, "original_max_position_embeddings", where)
    return int(given or fields.max_position_embeddings)


def _attention_factor(kind: str, parameters: Mapping[str, Any], longest: int, original: int) -> float:
    """Return the factor of cosines and sines as transformers computes it."""
    given = parameters.get("attention_factor")
    if given is not None or kind not in ("yarn", "longrope"):
        return float(given or 1.0)
    factor = float(parameters.get("factor") or longest / original)
    if factor <= 1.0:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    own, all_dims = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if own and all_dims:
        return float((0.1 * own * math.log(factor) + 1.0) / (0.1 * all_dims * math.log(factor) + 1.0))
    return 0.1 * math.log(factor) + 1.0


def wrong_config(where: str, what: str, hint: str = "") -> ModelFileError:
    """Return the error for a configuration that edge cannot use."""
    return ModelFileError(
        f"The configuration of {where} cannot be used: {what}.",
        hint or "Download the model again. If you changed its config.json, correct that.",
    )
