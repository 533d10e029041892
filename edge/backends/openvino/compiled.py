"""Compiles a model, or what was stored of it: a graph that the plug-in has transformed already, and its weights.

Most of the time of compiling goes into finding patterns in the graph. OpenVINO's own cache of compiled models would save it,
but cannot hold paged attention: the widths of the heads, which the operation needs, are lost on the way (2026.4). So the first
load stores the transformed graph, and later ones give the widths back and compile that, which finds nothing left to do. It is
used only if it was found to compute the same bits, right after it was stored.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.backends.openvino.graph import ATTENTION, build
from edge.backends.openvino.library import wrap_errors
from edge.backends.openvino.rotation import rotation_variant
from edge.errors import EdgeError
from edge.files import make_private_dir, read_record

if TYPE_CHECKING:
    from edge.backends.openvino.shape import Shape
    from edge.backends.openvino.tensors import Tensors
    from edge.formats.gguf import GGUFHeader
    from edge.plan.receipt import Plan

__all__ = ["Compiled", "Source", "compile_model"]

_log = logging.getLogger("edge.openvino")
_FORMAT = 1
_FOLDER = "openvino"
_LEAST_BYTES, _MOST_BYTES = 16 << 20, 1 << 30  # smaller models load at once, larger ones take too much of the disk
_BUDGET_BYTES, _FREE_BYTES = 3 << 30, 2 << 30  # of all stored models; left on the disk
_NEW, _ABANDONED_S = ".new-", 3600.0
_WIDTHS = ("k_head_size", "num_k_heads", "v_head_size", "num_v_heads")
_CONSTANT = re.compile(rb'<data element_type="[^"]*" shape="[^"]*" offset="(\d+)" size="(\d+)"')


class _About(msgspec.Struct, frozen=True, kw_only=True):
    """What is not in the graph.

    Attributes:
        format: see _FORMAT.
        weights_bytes: size of the file of weights.
        expected: as in Graph.
        widths: name of an attention -> numbers that it needs, see _WIDTHS.
    """

    format: int
    weights_bytes: int
    expected: dict[str, int]
    widths: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Compiled:
    """A compiled model.

    Attributes:
        model: the `openvino.CompiledModel`.
        expected: as in Graph.
        is_stored: this load stored it, so that later ones take less time.
    """

    model: Any
    expected: Mapping[str, int]
    is_stored: bool = False


@dataclass(frozen=True)
class Source:
    """A model to compile.

    Attributes:
        header: of its file.
        shape, tensors: of the model.
        plan: names the file.
    """

    header: GGUFHeader
    shape: Shape
    tensors: Tensors
    plan: Plan


def compile_model(
    ov: Any,
    source: Source,
    properties: Mapping[str, Any],
    *,
    cache_dir: Path | None,
    is_same: Callable[[Any, Any], bool],
) -> Compiled:
    """Compile a model with paged attention for the CPU.

    Args:
        ov: the module openvino.
        source: the model.
        properties: of the plug-in.
        cache_dir: where transformed models are stored, in `openvino` below it; None stores and reads none.
        is_same: returns whether two compiled models compute the same bits.

    Raises:
        NoPagedAttentionError: OpenVINO has none, or none for this model.
        BackendError: OpenVINO failed.
        ModelTooLargeError: memory ran out.
    """
    folder = _folder(ov, source, properties, cache_dir) if cache_dir is not None else None
    if folder is not None and folder.is_dir():
        found = _read(ov, folder, properties)
        if found is not None:
            return found
        shutil.rmtree(folder, ignore_errors=True)
    texts: list[bytes] = []

    def note(text: bytes) -> bytes:  # how a transformed graph can be had: the plug-in hands it over to be encrypted
        texts.append(text)
        return text

    noting = {"CACHE_ENCRYPTION_CALLBACKS": [note, lambda text: text]} if folder is not None else {}
    with wrap_errors("build the model"):
        graph = build(ov, source.shape, source.tensors)
    with wrap_errors("compile the model"):
        compiled = ov.Core().compile_model(graph.model, "CPU", {**properties, **noting})
    expected, widths = dict(graph.expected), _widths(graph.model)
    del graph  # the compiled one has its own weights
    is_stored = False
    if folder is not None:
        try:
            is_stored = _store(ov, compiled, folder, texts, expected, widths, properties, is_same)
        except (EdgeError, OSError, RuntimeError, ValueError, MemoryError) as error:
            _log.info("The transformed model of %s was not stored: %s", source.plan.artifact.path, error)
    return Compiled(compiled, expected, is_stored)


def _folder(ov: Any, source: Source, properties: Mapping[str, Any], cache_dir: Path) -> Path | None:
    """Return where a model is stored, if it is worth it: a name that follows from all that the graph depends on."""
    from edge.device.identity import cpu_identity
    from edge.hashes import file_sha256

    header, artifact = source.header, source.plan.artifact
    if not _LEAST_BYTES <= header.tensors_bytes <= _MOST_BYTES:
        return None
    try:
        digest = artifact.sha256 or file_sha256(artifact.path, cache_dir=cache_dir)
    except EdgeError:
        return None
    graph = {name: str(value) for name, value in properties.items() if name != "INFERENCE_NUM_THREADS"}
    about = [
        _FORMAT,
        str(ov.get_version()),
        cpu_identity(),
        digest,
        rotation_variant(header, source.plan.n_ctx),
        sorted(graph.items()),
    ]
    return cache_dir / _FOLDER / hashlib.sha256(msgspec.json.encode(about)).hexdigest()[:32]


def _read(ov: Any, folder: Path, properties: Mapping[str, Any]) -> Compiled | None:
    """Compile a stored model; None if it is damaged, or was found not to be the same."""
    about = read_record(folder / "about.json", _About)
    try:
        if about is None or about.format != _FORMAT or (folder / "model.bin").stat().st_size != about.weights_bytes:
            return None
        os.utime(folder / "about.json")  # what was not used for the longest time is removed first
        core = ov.Core()
        core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plug-in, without which its operations are unknown
        model = core.read_model(str(folder / "model.xml"))
        for node in model.get_ops():
            if node.get_type_name() == ATTENTION:
                info = node.get_rt_info()
                for name, value in about.widths[node.get_friendly_name()].items():
                    info[name] = value
        for cache in model.get_parameters():
            if "_cache." in cache.get_friendly_name():  # the plug-in chooses the type, and shape, again
                cache.set_element_type(ov.Type.dynamic)
                cache.set_partial_shape(ov.PartialShape([-1, -1, -1, -1]))
        model.validate_nodes_and_infer_types()
        return Compiled(core.compile_model(model, "CPU", dict(properties)), about.expected)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        _log.info("The transformed model in %s cannot be used: %s", folder, error)
        return None


def _store(
    ov: Any,
    compiled: Any,
    folder: Path,
    texts: list[bytes],
    expected: dict[str, int],
    widths: dict[str, dict[str, int]],
    properties: Mapping[str, Any],
    is_same: Callable[[Any, Any], bool],
) -> bool:
    """Store a model, and keep it if it computes the same."""
    blob = compiled.export_model().getbuffer()
    text = texts[-1]
    n_bytes = max(int(offset) + int(size) for offset, size in _CONSTANT.findall(text))
    end = len(blob) - len(text)
    if end < n_bytes or blob[end:] != text:
        return False  # another layout: the weights lie in front of the graph, which ends the file
    parent = make_private_dir(folder.parent)
    _make_room(parent, n_bytes)
    if shutil.disk_usage(parent).free < n_bytes + _FREE_BYTES:
        return False
    temporary = Path(tempfile.mkdtemp(prefix=_NEW, dir=parent))
    try:
        (temporary / "model.xml").write_bytes(text)
        with (temporary / "model.bin").open("wb") as file:
            file.write(blob[end - n_bytes : end])
        del blob
        about = _About(format=_FORMAT, weights_bytes=n_bytes, expected=expected, widths=widths)
        (temporary / "about.json").write_bytes(msgspec.json.encode(about))
        again = _read(ov, temporary, properties)
        is_kept = again is not None and is_same(compiled, again.model)
        del again  # its weights are mapped from the file, which Windows would not let go
        if not is_kept:
            return False
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _make_room(parent: Path, n_bytes: int) -> None:
    """Remove the models that were not used for the longest time, until one more fits into the budget."""
    for unfinished in parent.glob(f"{_NEW}*"):
        if time.time() - unfinished.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(unfinished, ignore_errors=True)
    found = []
    for folder in parent.iterdir():
        try:
            found.append(((folder / "about.json").stat().st_mtime, (folder / "model.bin").stat().st_size, folder))
        except OSError:
            continue  # being written, or no model
    total = n_bytes + sum(size for _, size, _ in found)
    for _, size, folder in sorted(found):
        if total <= _BUDGET_BYTES:
            break
        shutil.rmtree(folder, ignore_errors=True)
        total -= size


def _widths(model: Any) -> dict[str, dict[str, int]]:
    """Return the numbers that each attention needs, by its name."""
    found: dict[str, dict[str, int]] = {}
    for node in model.get_ops():
        if node.get_type_name() == ATTENTION:
            info = node.get_rt_info()
            found[node.get_friendly_name()] = {name: int(info[name].value) for name in _WIDTHS if name in info}
    return found
