"""The modules that a LoRA adapter changes, as its configuration names them: by ends of names, by a pattern, or "all-linear".

Source: `check_target_module_exists` and `_maybe_include_all_linear_layers` of peft.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from edge.errors import ModelFileError

__all__ = ["AdapterConfig", "changed_modules", "whole_tensors"]

_HEAD, _EMBEDDING = "lm_head", "model.embed_tokens"


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of adapter_config.json that are read here, with peft's names."""

    peft_type: str | None = None
    r: int | None = None
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None


def changed_modules(config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], where: str) -> list[str]:
    """Return the modules of a model that have an adapter on them.

    Args:
        config: of the adapter.
        shapes: tensor of the model -> shape.
        where: the adapter, for messages.

    Raises:
        ModelFileError: a pattern in the configuration is damaged.
    """
    matrices = [name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2]
    modules = list(dict.fromkeys([*matrices, _HEAD]))  # tied to the embedding, the head has no tensor
    targets = config.target_modules
    try:
        if targets == "all-linear":
            named = [module for module in modules if module not in (_HEAD, _EMBEDDING)]
        else:
            named = [module for module in modules if _is_named(module, targets)]
        if not isinstance(targets, str):
            named = [module for module in named if _is_in_layers(module, config)]
        whole = [re.compile(rf"(^|.*\.){name}($|\..*)") for name in config.modules_to_save or ()]
        named = [module for module in named if not any(pattern.match(module) for pattern in whole)]
        return [module for module in named if not _is_named(module, config.exclude_modules)]
    except re.error as error:
        raise ModelFileError(
            f"{where} names its modules by a damaged pattern: {error}.", "Save or download the adapter again."
        ) from error


def whole_tensors(config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the tensors of a model that the adapter replaces; see `changed_modules`."""
    ends = config.modules_to_save or ()
    names = dict.fromkeys([*shapes, f"{_HEAD}.weight"])
    return [name for name in names if name.rpartition(".")[0].endswith(ends)]


def _is_named(module: str, names: str | tuple[str, ...] | None) -> bool:
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _is_in_layers(module: str, config: AdapterConfig) -> bool:
    layers = config.layers_to_transform
    if layers is None or layers == ():
        return True
    given = config.layers_pattern or ()
    patterns = (given,) if isinstance(given, str) else given
    ways = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns] or [r".*?\.[^.]*\.(\d+)\."]
    found = next((match for way in ways if (match := re.match(way, module))), None)
    return found is not None and int(found[1]) in ((layers,) if isinstance(layers, int) else layers)
