"""Core ML on Apple's devices, through coremltools: packages that `edge convert --to coreml` makes.

A sequence has a Core ML state of its own, with room for the whole context. States cannot share cells, so a copy copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.backends.base import Capabilities, LoadProgress, ModelInfo
from edge.backends.coreml.engine import UNITS, load_coremltools, open_functions, os_identity, placement_text
from edge.backends.coreml.sequence import CoreMLSequence
from edge.backends.coreml.trial import Verdict, find_accelerator
from edge.backends.logits_backend import LogitsBackend
from edge.errors import BackendError, EdgeError, UsageError
from edge.formats.coreml import CoreMLPackage, read_package
from edge.prompt.hf_tokenizer import HFTokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.names import Accelerator
    from edge.plan.receipt import Plan

__all__ = ["CoreMLBackend"]

_TOKEN_BYTES = 4


class CoreMLBackend(LogitsBackend):
    """See the module and `Backend`.

    `prefill` computes keys and values only; the logits after its last token are computed when they are first asked for, so a
    prompt in many calls pays for them once. An engine that fails then raises BackendError from `logits` or `Sampler.sample`.

    Args:
        plan: what to load and how. The artifact is an .mlpackage with its tokenizer files beside it.
        on_progress: as in `open_backend`.
        coremltools: instead of the installed package, for tests on other systems.
        verdict: instead of trying the package on this device.
        cache_dir: for compiled models and verdicts; None is the setting paths.cache_dir.

    Raises:
        BackendUnavailableError: this is not a Mac with macOS 15, coremltools is missing, or a trial of the package failed here.
        ModelFileError: the package or its tokenizer is damaged, or not made by `edge convert`.
        UsageError: the plan asks for a longer context than the package has, or for a cache that is not float16.
        BackendError: Core ML failed.
        CancelledError: on_progress said False.
    """

    name = "coreml"
    block_magic = b"EDGECM1\0"

    def __init__(
        self,
        plan: Plan,
        *,
        on_progress: LoadProgress | None = None,
        coremltools: Any = None,
        verdict: Verdict | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        toolkit = load_coremltools() if coremltools is None else coremltools
        package = read_package(plan.artifact.path)
        _check_plan(plan, package)
        if cache_dir is None:
            from edge.config.load import load_settings

            cache_dir = load_settings(strict=False).paths.cache_dir
        info = package.info
        tokenizer = HFTokenizer(package.path.parent, info.vocab)
        digest = package.sha256(cache_dir=cache_dir)

        accelerator, found, tried = find_accelerator(plan, package, digest, cache_dir, on_progress, verdict)
        units = UNITS[accelerator]
        self._package = package
        self._functions: Any = open_functions(toolkit, package, units, cache_dir, digest, on_progress)
        super().__init__(
            _describe(plan, package, tokenizer, accelerator, found, tried),
            Capabilities(rewind=True, export_kv=True, checkpoints=True, n_seq=plan.n_seq, shared_cells=False),
            tokenizer,
            n_ctx=min(plan.n_ctx, info.context),
            chunk_size=info.chunk,
        )
        self.chunk_grain = info.chunk  # a shorter one is padded to it, so a piece would save no time
        self._identity: dict[str, str | int | float | bool] = {
            "layout": self.block_magic.decode("ascii", "replace"),
            "units": units,
            "system": os_identity(),
            "coremltools": str(toolkit.__version__),
        }
        self._sequences: dict[int, CoreMLSequence] = {}
        self._spare: CoreMLSequence | None = self._warm_up()
        if on_progress is not None:
            on_progress(1.0)

    def kv_identity(self) -> dict[str, str | int | float | bool]:
        self._check_open()
        return {"backend": self.name, **self._identity}

    # -- for LogitsBackend

    def _compute(
        self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None
    ) -> npt.NDArray[np.float32] | None:
        import numpy as np

        tokens = [int(token) for token in ids]
        with _wrap_errors("compute a pass"):
            sequence = self._sequence(seq_id, start)
            if len(tokens) == 1:
                return sequence.decode(tokens[0])
            sequence.prefill(tokens)
        return np.empty(0, np.float32)  # see _late_logits

    def _late_logits(self, seq_id: int) -> npt.NDArray[np.float32]:
        with _wrap_errors("compute logits"):
            return self._sequences[seq_id].newest_logits()

    def _copy(self, source: int, target: int, n_tokens: int) -> None:
        with _wrap_errors("copy a state"):
            origin = self._sequences[source]
            self._sequence(target, 0).append_rows(origin.tokens[:n_tokens], origin.read_rows(0, n_tokens))

    def _kv_bytes(self, n_tokens: int) -> int:
        info = self._package.info
        return n_tokens * (_TOKEN_BYTES + info.cache_bytes // info.context)

    def _read_kv(self, seq_id: int, start: int, end: int, out: npt.NDArray[np.uint8]) -> None:
        import numpy as np

        with _wrap_errors("read a state"):
            sequence = self._sequences[seq_id]
            n_head = _TOKEN_BYTES * (end - start)
            # With its tokens: a chunk near the end of the context begins earlier, and is computed from them.
            out[:n_head] = np.array(sequence.tokens[start:end], "<i4").view(np.uint8)
            out[n_head:] = np.ascontiguousarray(sequence.read_rows(start, end), "<f2").reshape(-1).view(np.uint8)

    def _write_kv(self, seq_id: int, start: int, end: int, data: npt.NDArray[np.uint8]) -> None:
        import numpy as np

        info = self._package.info
        n_head = _TOKEN_BYTES * (end - start)
        tokens = np.frombuffer(data[:n_head].tobytes(), "<i4")
        if (tokens < 0).any() or (tokens >= info.vocab).any():
            raise BackendError("The KV block is of another model: it has tokens that this one does not know.")
        rows, heads, _, width = info.cache_shape
        values = np.frombuffer(data[n_head:].tobytes(), "<f2").reshape(rows, heads, end - start, width)
        with _wrap_errors("write a state"):
            self._sequence(seq_id, start).append_rows([int(token) for token in tokens], values)

    def _free_kv(self, seq_id: int) -> None:
        sequence = self._sequences.pop(seq_id, None)
        if sequence is not None:  # one is kept for the next conversation; others free their memory
            sequence.truncate(0)
            self._spare = sequence

    def _free(self) -> None:
        self._sequences.clear()
        self._spare = None
        self._functions = None

    # -- inside

    def _sequence(self, seq_id: int, start: int) -> CoreMLSequence:
        """Return a sequence with exactly its first `start` tokens: it is truncated only now, before tokens are appended."""
        sequence = self._sequences.get(seq_id)
        if sequence is None:
            sequence, self._spare = self._spare or CoreMLSequence(self._functions, self._package.info), None
            self._sequences[seq_id] = sequence
        sequence.truncate(start)
        return sequence

    def _warm_up(self) -> CoreMLSequence:
        """Run each function once: Core ML prepares much in the first call."""
        with _wrap_errors("compute a first pass"):
            sequence = CoreMLSequence(self._functions, self._package.info)
            sequence.prefill([0])
            sequence.decode(0)
        return sequence


@contextmanager
def _wrap_errors(what: str) -> Iterator[None]:
    """Turn errors into edge's: coremltools raises RuntimeError for Core ML's own, and many kinds for what it finds itself."""
    try:
        yield
    except EdgeError:
        raise
    except Exception as error:
        raise BackendError(f"Core ML could not {what}: {error}", "Load the model again, or use another accelerator.") from error


def _check_plan(plan: Plan, package: CoreMLPackage) -> None:
    context = package.info.context
    if plan.n_ctx > context:
        raise UsageError(
            f"A context of {plan.n_ctx:,} tokens is asked for, and {package.path.name} is built for {context:,}.",
            f"Ask for {context:,} or fewer, or convert the model with --context {plan.n_ctx}.",
        )
    for name in (plan.kv_type_k, plan.kv_type_v):
        if name != "f16":
            raise UsageError(
                f"The KV type {name} is asked for, and Core ML packages keep theirs as f16.", "Leave out --kv-type."
            )


def _describe(
    plan: Plan, package: CoreMLPackage, tokenizer: HFTokenizer, accelerator: Accelerator, verdict: Verdict, tried: str
) -> ModelInfo:
    info = package.info
    details = {
        "weights": f"{info.variant} ({', '.join(f'{count} {kind}' for kind, count in sorted(info.encodings.items()))})",
        "layers": str(info.n_layers),
        "heads": f"KV {info.n_kv_heads}, {info.head_dim} wide",
        "cache": "Core ML state" if info.stateful else "input and output",
        "sliding window": f"{info.window:,} tokens" if info.window else "",
        "accelerator": accelerator,
        "compute units": UNITS[accelerator],
        "tried": tried,
        "placement": placement_text(verdict.placement),
    }
    return ModelInfo(
        name=plan.artifact.name,
        architecture=_architecture(package.path.parent),
        n_params=info.n_params,
        size_bytes=package.weights_bytes,
        n_vocab=info.vocab,
        n_ctx_train=info.n_ctx_train or info.context,
        chat_template=tokenizer.chat_template,
        bos_text=tokenizer.bos_text,
        eos_text=tokenizer.eos_text,
        adds_bos=tokenizer.adds_bos,
        details={name: value for name, value in details.items() if value},
    )


def _architecture(folder: Path) -> str:
    """Return the architecture that the manifest beside the package names."""
    import msgspec

    from edge.files import read_json

    class Manifest(msgspec.Struct):
        architecture: str = "unknown"

    path = folder / "manifest.json"
    return read_json(path, Manifest).architecture if path.is_file() else "unknown"
