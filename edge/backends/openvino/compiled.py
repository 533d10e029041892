"""Compiles a model, or what was stored of it: a graph that the plug-in has transformed already, and its weights.

Most of the time of compiling goes into finding patterns in the graph. OpenVINO's own cache of compiled models would save it,
but cannot hold paged attention: the widths of the heads, which the operation needs, are lost on the way (2026.4). So the first
load stores the transformed graph, and later ones give the widths back and compile that, which finds nothing left to do. It is
used only if it was found to compute the same bits, right after it was stored, and if nothing of it has changed since. A model
that cannot be stored so is remembered, and not tried again.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import stat
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
from edge.hashes import file_sha256

if TYPE_CHECKING:
    from edge.backends.openvino.shape import Shape
    from edge.backends.openvino.tensors import Tensors
    from edge.formats.gguf import GGUFHeader
    from edge.plan.receipt import Plan

__all__ = ["Compiled", "Source", "compile_model"]

_log = logging.getLogger("edge.openvino")
_FORMAT = 3  # of what is stored; the version of edge, which writes the graph, counts beside it
_FOLDER = "openvino"
_KEEP_PRECISION = "keep_const_precision_0"
"""Mark of constants that the plug-in is to leave in 4 bits; otherwise it widens them to 8, since a product has them already."""
_LEAST_BYTES, _MOST_BYTES = 16 << 20, 1 << 30  # smaller models load at once, larger ones take too much of the disk
_BUDGET_BYTES, _FREE_BYTES = 3 << 30, 2 << 30  # of all stored models; left on the disk
_COMPILING_FACTOR = 3  # as the plan has it
_STORING_FACTOR = 3  # the blob, a second compiled model and its files, in memory for a moment; of the tensors in the file
_NEW, _ABANDONED_S = ".new-", 3600.0
_WIDTHS = ("k_head_size", "num_k_heads", "v_head_size", "num_v_heads")
_CONSTANT = re.compile(rb'<data element_type="[^"]*" shape="[^"]*" offset="(\d+)" size="(\d+)"')


class _About(msgspec.Struct, frozen=True, kw_only=True):
    """What is not in the graph.

    Attributes:
        format: see _FORMAT.
        sha256: of the graph, and of the weights; without any the model was tried in vain.
        expected: as in Graph.
        widths: name of an attention -> numbers that it needs, see _WIDTHS.
    """

    format: int
    sha256: tuple[str, ...] = ()
    expected: dict[str, int] = {}
    widths: dict[str, dict[str, int]] = {}


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
        about = _about(folder)
        found = _read(ov, folder, about, properties) if about is not None and about.sha256 else None
        if found is not None:
            return found
        if about is not None and not about.sha256:
            folder = None  # it cannot be stored
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if folder is not None and not _has_memory(source.header.tensors_bytes):
        folder = None  # another time
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


def _has_memory(tensors_bytes: int) -> bool:
    """Return whether a model that is to be compiled can be stored, too, for which the plan has no room."""
    from edge.device.sensors import Sensors

    available = Sensors().read().available_bytes
    return available is None or available > (_COMPILING_FACTOR + _STORING_FACTOR) * tensors_bytes


def _folder(ov: Any, source: Source, properties: Mapping[str, Any], cache_dir: Path) -> Path | None:
    """Return where a model is stored, if it is worth it: a name that follows from all that the graph depends on."""
    import edge
    from edge.device.identity import cpu_identity

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
        edge.__version__,
        str(ov.get_version()),
        cpu_identity(),
        digest,
        rotation_variant(header, source.plan.n_ctx),
        sorted(graph.items()),
    ]
    return cache_dir / _FOLDER / hashlib.sha256(msgspec.json.encode(about)).hexdigest()[:32]


def _about(folder: Path) -> _About | None:
    """Return what is stored beside a graph; None if it is damaged, or anybody else could have written it."""
    try:
        state = folder.lstat()
    except OSError:
        return None  # another process has just removed it
    is_mine = not hasattr(os, "getuid") or (state.st_uid == os.getuid() and not stat.S_IMODE(state.st_mode) & 0o077)
    about = read_record(folder / "about.json", _About) if is_mine and stat.S_ISDIR(state.st_mode) else None
    return about if about is not None and about.format == _FORMAT else None


def _read(ov: Any, folder: Path, about: _About, properties: Mapping[str, Any]) -> Compiled | None:
    """Compile a stored model; None if it is damaged."""
    try:
        if _digests(folder) != about.sha256:
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
            elif node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.u4:
                node.get_rt_info()[_KEEP_PRECISION] = True
        for cache in model.get_parameters():
            if "_cache." in cache.get_friendly_name():  # the plug-in chooses the type, and shape, again
                cache.set_element_type(ov.Type.dynamic)
                cache.set_partial_shape(ov.PartialShape([-1, -1, -1, -1]))
        model.validate_nodes_and_infer_types()
        return Compiled(core.compile_model(model, "CPU", dict(properties)), about.expected)
    except (EdgeError, OSError, RuntimeError, KeyError, ValueError) as error:
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
    """Store a model if what was stored computes the same; otherwise that it does not."""
    parent = make_private_dir(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=_NEW, dir=parent))
    try:
        about = _About(format=_FORMAT)
        if _write_files(compiled, texts, temporary):
            new = _About(format=_FORMAT, sha256=_digests(temporary), expected=expected, widths=widths)
            (temporary / "about.json").write_bytes(msgspec.json.encode(new))
            again = _read(ov, temporary, new, properties)
            if again is not None and is_same(compiled, again.model):
                about = new
            del again  # its weights are mapped from the file, which Windows would not let go
        if not about.sha256:
            for path in temporary.iterdir():
                path.unlink()
            (temporary / "about.json").write_bytes(msgspec.json.encode(about))
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return bool(about.sha256)


def _write_files(compiled: Any, texts: list[bytes], folder: Path) -> bool:
    """Write graph and weights of a compiled model; return False if they are not where they are expected.

    Raises:
        OSError: the disk is too full for them, or failed.
    """
    blob = compiled.export_model().getbuffer()
    if not texts:  # this version does not hand the graph over
        return False
    text = texts[-1]
    n_bytes = max(int(offset) + int(size) for offset, size in _CONSTANT.findall(text))
    end = len(blob) - len(text)
    if end < n_bytes or blob[end:] != text:
        return False  # another layout: the weights lie in front of the graph, which ends the file
    _make_room(folder.parent, n_bytes)
    if shutil.disk_usage(folder).free < n_bytes + _FREE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (folder / "model.xml").write_bytes(text)
    with (folder / "model.bin").open("wb") as file:
        file.write(blob[end - n_bytes : end])
    return True


def _digests(folder: Path) -> tuple[str, ...]:
    return file_sha256(folder / "model.xml"), file_sha256(folder / "model.bin")


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
