"""The contract that every engine keeps. tests/contract/ holds all of them to it.

A backend is one loaded model with one KV cache. It is **not** thread-safe: the engine thread (engine/scheduler.py) owns it, and
everything else talks to that thread through a queue. Only `close`, `tokenizer` and read-only attributes may be used elsewhere.

A *sequence* is one row of the KV cache, numbered 0 to `capabilities.n_seq - 1`; position i of it holds the key and value of
its i-th token. `prefill` and `decode` append at the end; `rewind` truncates it. The caller keeps the tokens themselves.

A sequence has *newest logits* after a `prefill` that was not stopped and after a `decode`. Whatever else changes the sequence
(rewind, copy, import_kv) drops them; work on other sequences does not. A `decode` with a draft leaves logits after the token
and after each draft token, so that a sampler can verify the draft.

Beside the errors that its docstring names, every method raises UsageError, and changes nothing, if a sequence, token or range
does not exist, and BackendError once the backend is closed.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from edge.errors import BackendUnavailableError, UnsupportedError, UsageError
from edge.registry import ENGINES, load_entry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.adapters import Adapter, Mix
    from edge.backends.neutral import NeutralLayout
    from edge.plan.receipt import Plan
    from edge.prompt.tokenizers import Tokenizer
    from edge.types import Sampling

    Mask = npt.NDArray[np.bool_]
    """Which tokens may be chosen, shape (n_vocab,)."""

__all__ = [
    "MAX_DRAFT",
    "NO_DRAFTS",
    "Backend",
    "Capabilities",
    "LoadProgress",
    "ModelInfo",
    "Part",
    "Sampler",
    "is_out_of_memory",
    "open_backend",
]

MAX_DRAFT = 16
"""Most draft tokens of one pass, those of all sequences together."""
NO_DRAFTS: Mapping[int, Sequence[int]] = MappingProxyType({})
# The C library's words for ENOMEM on several systems, and those of llama.cpp, onnxruntime and C++.
_OUT_OF_MEMORY = re.compile(
    r"bad[_ ]alloc|out of memory|not enough memory|memory exhausted|paging file is too small|"
    r"(failed|unable|could not|couldn't|cannot|can't|error) (to )?(be )?(allocat|reserve memory|map segment)",
    re.IGNORECASE,
)
_NOT_MEMORY = "in static TLS block"  # the linker's, of a library that was loaded too late


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Abilities of a backend. Callers ask, and refuse by name what it cannot (UnsupportedError).

    Attributes:
        rewind: a sequence can be truncated at any token (false for recurrent and some sliding-window models).
        export_kv: any range of the KV cache can be exported and imported.
        checkpoints: the state of a whole sequence can be exported, and imported into an empty one. Where export_kv is false
            (recurrent models), this is all that `Backend.export_kv` and `import_kv` do.
        n_seq: how many sequences fit side by side.
        shared_cells: sequences take cells from one pool, so the sum of their lengths is bounded (cells shared by `copy` count
            once). Where false, each sequence has a buffer of its own, and none takes room from another.
        threads: the number of threads can be changed while the model is open (`Backend.set_threads`).
        free_threads: changing their number costs nothing, so it can be done between any two passes.
        resize: the KV cache can be resized while the model is open (`Backend.resize`).
        drafts: `decode` takes draft tokens. Sequences can be rewound behind them.
        adapters: LoRA adapters can be applied (`Backend.set_adapters`).
        max_outputs: logits that one pass over several prompts computes at most (`Backend.extend`); 0 where there is none.
    """

    rewind: bool
    export_kv: bool
    checkpoints: bool
    n_seq: int
    shared_cells: bool
    threads: bool = False
    free_threads: bool = False
    resize: bool = False
    drafts: bool = False
    adapters: bool = False
    max_outputs: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """What a pass over several prompts appends to one sequence; see `Backend.extend`.

    Attributes:
        seq_id: the sequence.
        tokens: at least one.
        n_logits: after how many of the last tokens logits are computed; at least one, at most all.
    """

    seq_id: int
    tokens: Sequence[int]
    n_logits: int = 1


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts about the loaded model.

    Attributes:
        name: as the file calls it.
        architecture: llama.cpp's name for it: "llama", "qwen2", ...
        n_params: number of weights.
        size_bytes: of the weights.
        n_vocab: size of the vocabulary.
        n_ctx_train: longest context the model was trained for, in tokens.
        chat_template: Jinja source from the model file, or None.
        bos_text, eos_text: text of these special tokens, "" where the model has none.
        adds_bos: the tokenizer puts the beginning-of-sequence token in front by itself.
        details: whatever else `edge models show` prints, as short texts.
    """

    name: str
    architecture: str
    n_params: int
    size_bytes: int
    n_vocab: int
    n_ctx_train: int
    chat_template: str | None
    bos_text: str
    eos_text: str
    adds_bos: bool
    details: dict[str, str]


class Sampler(ABC):
    """Chooses the tokens of one reply; holds the state of penalties and of the random draw."""

    @abstractmethod
    def sample(self, seq_id: int, n_back: int = 0, allowed: Mask | None = None) -> int:
        """Choose the next token of a sequence from its newest logits, and remember the choice.

        Args:
            seq_id: the sequence; its last `prefill` or `decode` must have succeeded.
            n_back: after a `decode` with a draft, choose the token that follows the position so many before the last one: the
                length of the draft for the token in front of it, down to 0. The sampler must have chosen all those between.
            allowed: choose among these tokens only, as if the vocabulary had no others; None allows all. The newest logits
                stay as they are.

        Returns:
            A token id.

        Raises:
            BackendError: the sequence has no such logits, they contain NaN, or the sampler or backend is closed.
            ConstraintError: no token is allowed, or `Sampling.logit_bias` forbids all that are; nothing has changed.
        """

    @abstractmethod
    def accept(self, tokens: Sequence[int]) -> None:
        """Note tokens that the reply goes on with although `sample` did not choose them; penalties look back at them.

        Raises:
            UsageError: the vocabulary does not have one.
            BackendError: the sampler or backend is closed.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the sampler holds. May be called twice."""


class Backend(ABC):
    """One loaded model. Made by `open_backend`.

    Attributes:
        name: as in `edge.registry.ENGINES`.
        capabilities: what it can do.
        info: the model.
        tokenizer: of the model; usable from any thread. `close` closes it.
        n_ctx: cells of the KV cache, for all sequences together where `capabilities.shared_cells` is true, otherwise for each.
            Only `resize` changes it.
        adapters: LoRA adapters that were loaded with the model; `set_adapters` names them by their place here.
        is_faster_next: loading it stored something, so that the next load takes less time.
        kv_window: tokens of a sliding window, 0 for none: only ranges shorter than it, among the newest of a sequence, can be
            exported.
        chunk_size: prompts are computed in chunks of at most this many tokens, cut at multiples of it counted from position 0;
            `should_stop` takes effect between chunks.
        neutral: layout of its KV blocks, where other engines can import them; None where they are its own.
        chunk_grain: a chunk may be computed in pieces of at least this many tokens; where the engine's last bits depend on how
            tokens were batched, pieces of multiples of it leave them as they are.
    """

    name: str
    capabilities: Capabilities
    info: ModelInfo
    tokenizer: Tokenizer
    n_ctx: int
    chunk_size: int
    chunk_grain: int = 64
    kv_window: int = 0
    is_faster_next: bool = False
    adapters: tuple[Adapter, ...] = ()
    neutral: NeutralLayout | None = None

    @abstractmethod
    def length(self, seq_id: int) -> int:
        """Return the number of positions of a sequence in the KV cache."""

    @abstractmethod
    def prefill(self, seq_id: int, tokens: Sequence[int], *, should_stop: Callable[[], bool] | None = None) -> int:
        """Append tokens to a sequence and compute the logits after the last one.

        Args:
            seq_id: the sequence; tokens go to positions `length(seq_id)` and up.
            tokens: at least one.
            should_stop: asked before every chunk, and perhaps from another thread while one is computed; True ends the
                call early and keeps the finished chunks.

        Returns:
            How many of `tokens` are now in the cache: all of them, unless should_stop said True.

        Raises:
            ContextFullError: they do not fit; the cache is unchanged.
            BackendError: the engine failed; the cache holds the chunks before the failure, or nothing of this sequence where it
                cannot be truncated (see rewind): ask `length`.
        """

    @abstractmethod
    def decode(self, steps: Sequence[tuple[int, int]], drafts: Mapping[int, Sequence[int]] = NO_DRAFTS) -> None:
        """Append one token to each of several sequences, in one pass, and compute their logits.

        Args:
            steps: (seq_id, token), at least one, every sequence at most once.
            drafts: sequence of `steps` -> tokens to append behind its token; at most MAX_DRAFT in all. The logits after each
                of them are computed, too; `rewind` drops what the reply does not go on with.

        Raises:
            UnsupportedError: there are drafts and `capabilities.drafts` is false.
            ContextFullError: no cell is free; the cache is unchanged.
            BackendError: the engine failed; the sequences are unchanged, or empty where they cannot be truncated (see rewind):
                ask `length`.
        """

    def extend(self, parts: Sequence[Part]) -> None:
        """Append tokens to several sequences in one pass, and compute the logits after the last ones of each.

        Args:
            parts: at least one, every sequence at most once; at most `chunk_size` tokens and `capabilities.max_outputs` logits
                in all. Afterwards `logits(seq_id, n_back)` has those of each, as after a `decode` with a draft.

        Raises:
            UnsupportedError: `capabilities.max_outputs` is 0.
            ContextFullError, BackendError: as `decode`.
        """
        raise UnsupportedError(f"The {self.name} backend computes one prompt at a time.")

    @abstractmethod
    def rewind(self, seq_id: int, n_keep: int) -> None:
        """Truncate a sequence to its first `n_keep` positions. 0 empties it, which every backend can.

        Raises:
            UnsupportedError: the backend cannot truncate there (`capabilities.rewind` is false and n_keep is neither 0 nor the
                current length); the cache is unchanged.
        """

    @abstractmethod
    def logits(self, seq_id: int, n_back: int = 0) -> npt.NDArray[np.float32]:
        """Return a copy of the newest logits of a sequence, shape (n_vocab,), float32.

        Args:
            seq_id: the sequence.
            n_back: return those before its last so many draft tokens instead, as `Sampler.sample` does.

        Raises:
            BackendError: the sequence has none.
        """

    @abstractmethod
    def open_sampler(self, sampling: Sampling, history: Sequence[int] = ()) -> Sampler:
        """Return a sampler for one reply.

        Args:
            sampling: the settings.
            history: tokens before the reply, which penalties look back at.

        Raises:
            UsageError: logit_bias or history names a token that the vocabulary does not have.
        """

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Replace `target` by the first `n_tokens` of `source`, sharing memory where the backend can.

        Raises:
            UnsupportedError: the backend has one sequence only, cannot share, or cannot truncate `source` there (see rewind).
        """
        raise UnsupportedError(f"The {self.name} backend cannot copy one sequence to another.")

    def export_kv(self, seq_id: int, start: int, end: int) -> bytes:
        """Return the keys and values of positions [start, end) as an opaque block.

        Args:
            seq_id: the sequence.
            start, end: positions; 0 and the length of the sequence where `capabilities.export_kv` is false.

        Raises:
            UnsupportedError: this range cannot be exported; see Capabilities. A sliding window may have moved past it.
        """
        raise UnsupportedError(f"The {self.name} backend cannot export its KV cache.")

    def import_kv(self, seq_id: int, block: bytes | memoryview) -> None:
        """Append an exported block to a sequence; its first position must be `length(seq_id)`.

        The caller has checked where the block comes from and that it is whole: engines trust what they are given.

        Raises:
            UnsupportedError: neither `capabilities.export_kv` nor `checkpoints` is true.
            ContextFullError: there is no room; the sequence is unchanged.
            BackendError: the engine refused the block; the sequence is unchanged.
        """
        raise UnsupportedError(f"The {self.name} backend cannot import a KV cache.")

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        """Compute with another number of CPU threads from the next pass on.

        Where the engine splits sums among threads, the last bits of decoded logits depend on their number.

        Args:
            n_threads: for passes over one token a sequence; at least 1.
            n_threads_batch: for chunks of a prompt; at least 1. Where one pool computes both, n_threads counts.

        Raises:
            UnsupportedError: `capabilities.threads` is false.
            UsageError: a number is below 1.
        """
        raise UnsupportedError(f"The {self.name} backend cannot change its threads.")

    def resize(self, n_ctx: int) -> None:
        """Replace the KV cache by one of another size and free the old one. All sequences must be empty.

        Args:
            n_ctx: cells; the engine may round up, as the attribute `n_ctx` then says.

        Raises:
            UnsupportedError: `capabilities.resize` is false, or blocks of this model mean something else in such a window; the
                cache is unchanged.
            UsageError: a sequence is not empty, or n_ctx is below 1.
            ModelTooLargeError: there is no memory for it; the cache keeps its size.
            BackendError: nor is there memory for the old one any more; the backend is closed.
        """
        raise UnsupportedError(f"The {self.name} backend cannot change the size of its KV cache.")

    def set_adapters(self, mix: Mix) -> None:
        """Compute with these adapters from the next pass on, until others are set. At first there are none.

        They hold for all sequences of a pass. Keys and values depend on them: it is for the caller to compute all of a sequence
        with the same ones, and to import blocks only where they were exported with the same ones. Newest logits stay.

        Args:
            mix: of `adapters`; () is the model alone.

        Raises:
            UsageError: there is no such adapter.
            BackendError: the engine failed; the adapters are as before.
        """
        self._check_mix(mix)

    def _check_mix(self, mix: Mix) -> None:
        for number, _ in mix:
            if not 0 <= number < len(self.adapters):
                raise UsageError(f"There is no adapter {number}.", f"The model was loaded with {len(self.adapters)}.")

    def kv_identity(self) -> dict[str, str | int | float | bool]:
        """Return everything but the weights that changes what an exported block means or how its numbers came out.

        A block may only be given to `import_kv` of a backend with equal values, the same weights and the same adapters in use;
        where `neutral` is set, its `common` values are enough. Empty where nothing can be exported.
        """
        return {}

    def maker(self, block: bytes | memoryview) -> str:
        """Return which other engine computed a block, in words; "" if it was this one, with the same `kv_identity`."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """Free the model. May be called twice; every other call afterwards raises BackendError."""

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class LoadProgress(Protocol):
    """Progress callback of a load."""

    def __call__(self, share: float, stage: str = "loading") -> bool:
        """Take the share of a stage that is done, 0 to 1, and the stage, in words that a model's name can follow.

        Returns:
            False stops the load.
        """
        ...


def is_out_of_memory(error: Exception | str) -> bool:
    """Tell if an error, or what an engine says about one, means that memory ran out."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)) and _NOT_MEMORY not in str(error))


def open_backend(plan: Plan, *, on_progress: LoadProgress | None = None) -> Backend:
    """Load the model of a plan.

    Args:
        plan: what to load and how; `plan.backend` names the backend.
        on_progress: called while loading.

    Raises:
        BackendUnavailableError: there is no backend of that name, or its package is not installed.
        ModelFileError: the file cannot be used.
        CancelledError: on_progress said False.
    """
    row = ENGINES.get(plan.backend)
    if row is None:
        raise BackendUnavailableError(f"There is no backend {plan.backend!r}.", f"Known here: {', '.join(sorted(ENGINES))}.")
    try:
        backend_class = load_entry(row.backend)
    except ImportError as error:
        raise BackendUnavailableError(
            f"The {plan.backend} backend needs a package that is not installed ({error}).",
            row.package.install if row.package else "",
        ) from error
    backend: Backend = backend_class(plan, on_progress=on_progress)
    return backend
