"""A model and its context: opened with llama.cpp, and described."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edge.backends.base import MAX_DRAFT, Capabilities, ModelInfo
from edge.backends.llamacpp.library import clear_log, load_failure, load_library
from edge.backends.llamacpp.vocabulary import Vocabulary
from edge.errors import BUILD_HINT, BackendUnavailableError, CancelledError, ModelFileError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from edge.plan.receipt import Plan
    from edge.prompt.tokenizers import Tokenizer

__all__ = [
    "KV_TYPES",
    "capabilities_of",
    "check_usable",
    "describe",
    "load_model",
    "meta",
    "open_context",
    "open_vocabulary",
    "rope_variant",
]

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
"""Name -> ggml type, for the KV cache."""

_VOCAB_TYPES = {0: "none", 1: "SPM", 2: "BPE", 3: "WPM", 4: "UGM", 5: "RWKV", 6: "PLaMo-2"}
_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ; one is our spare


def load_model(library: Any, plan: Plan, architecture: str, on_progress: Callable[[float], bool] | None) -> Any:
    """Load the weights.

    Args:
        library: from `load_library`.
        plan: `artifact.path`, `accelerator`, `gpu_layers`, `use_mmap` and `use_extra_buffers` are used.
        architecture: what the header says, for messages.
        on_progress: called with the share that is done (0 to 1); False stops.

    Returns:
        The model pointer; free it with llama_model_free.

    Raises:
        BackendUnavailableError: layers go to an accelerator that this build of llama.cpp does not have.
        CancelledError: on_progress said False.
        ModelFileError, ModelTooLargeError, BackendError: llama.cpp refused; see `load_failure`.
    """
    if plan.accelerator != "cpu" and not library.llama_supports_gpu_offload():
        raise BackendUnavailableError(
            f"This build of llama.cpp cannot use {plan.accelerator}: it is compiled for the CPU only.",
            f"Build it for this machine: {BUILD_HINT}",
        )
    params = library.llama_model_default_params()
    params.n_gpu_layers = plan.gpu_layers
    params.use_extra_bufts = plan.use_extra_buffers
    params.load_mode = library.LLAMA_LOAD_MODE_MMAP if plan.use_mmap else library.LLAMA_LOAD_MODE_NONE
    no_devices = (ctypes.c_void_p * 1)(None)
    if plan.accelerator == "cpu":
        params.devices = ctypes.cast(no_devices, ctypes.c_void_p)  # without this a GPU build computes long prompts there
    raised: list[BaseException] = []

    def progress(share: float, _user_data: object) -> bool:
        try:
            if on_progress is not None and not on_progress(share):
                raise CancelledError("Loading was stopped.")
        except BaseException as error:  # noqa: BLE001 (KeyboardInterrupt too: C cannot carry it, it is raised again below)
            raised.append(error)
        return not raised

    params.progress_callback = library.llama_progress_callback(progress)
    clear_log()
    model = library.llama_model_load_from_file(os.fsencode(plan.artifact.path), params)
    if raised:
        if model:
            library.llama_model_free(model)
        raise raised[0]
    if not model:
        raise load_failure("load the weights", plan.artifact.path, architecture)
    return model


def open_vocabulary(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Open the tokenizer of a GGUF file without its weights, for engines that read such files and have none of their own.

    Args:
        path: the file; its header was checked.

    Returns:
        The tokenizer, whose `close` frees the file, and the fields of a ModelInfo that come from the vocabulary.

    Raises:
        BackendUnavailableError: llama.cpp is not installed.
        ModelFileError, ModelTooLargeError, BackendError: llama.cpp refused; see `load_failure`.
    """
    library = load_library()
    params = library.llama_model_default_params()
    params.vocab_only = True
    clear_log()
    model = library.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise load_failure("read the vocabulary", path, "")
    vocab = library.llama_model_get_vocab(model)
    if library.llama_vocab_type(vocab) == library.LLAMA_VOCAB_TYPE_NONE:
        library.llama_model_free(model)
        raise _no_tokenizer(path)

    class OwnVocabulary(Vocabulary):
        def close(self) -> None:
            was_open = self._is_open
            super().close()
            if was_open:
                library.llama_model_free(model)

    return OwnVocabulary(library, vocab), _about_vocabulary(library, vocab)


def open_context(library: Any, plan: Plan, model: Any, architecture: str, abort: Any) -> Any:
    """Allocate the KV cache and the compute buffers.

    Args:
        library, plan, architecture: as for `load_model`; the plan's `n_ctx`, `n_seq`, threads, batches and KV types count.
        model: the model pointer.
        abort: an AbortFlag.

    Returns:
        The context pointer; free it with llama_free. It has one sequence more than the plan, for export and import.

    Raises:
        UsageError: the plan names a KV type that does not exist, or too many sequences.
        ModelTooLargeError, BackendError: llama.cpp refused; see `load_failure`.
        ModelFileError: the model is an encoder: it has no KV cache and cannot generate.
    """
    params = library.llama_context_default_params()
    for name in (plan.kv_type_k, plan.kv_type_v):
        if name not in KV_TYPES:
            raise UsageError(f"There is no KV type {name!r}.", f"Known: {', '.join(KV_TYPES)}.")
    if not 1 <= plan.n_seq < _MAX_SEQUENCES:
        raise UsageError(f"{plan.n_seq} sequences are not possible.", f"Use 1 to {_MAX_SEQUENCES - 1}.")
    params.type_k, params.type_v = KV_TYPES[plan.kv_type_k], KV_TYPES[plan.kv_type_v]
    params.n_ctx = plan.n_ctx
    params.n_batch = max(plan.n_ubatch, plan.n_seq + MAX_DRAFT)
    params.n_ubatch = plan.n_ubatch
    params.n_seq_max = plan.n_seq + 1
    # Each sequence needs logits of one token at most. By default llama.cpp reserves room for a whole batch of them: 100 MB at
    # 512 tokens and a vocabulary of 49,152.
    params.n_outputs_max = plan.n_seq + MAX_DRAFT
    params.kv_unified = True  # cells are shared between sequences, which copy, export and import need
    params.swa_full = True  # keeps the whole past of sliding-window layers, so that such models can be rewound too
    params.n_threads = plan.n_threads
    params.n_threads_batch = plan.n_threads_batch
    params.flash_attn_type = (
        library.LLAMA_FLASH_ATTN_TYPE_ENABLED if plan.flash_attention else library.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    params.offload_kqv = params.op_offload = plan.accelerator != "cpu"
    params.abort_callback = abort.callback
    params.abort_callback_data = abort.user_data
    params.no_perf = True
    clear_log()
    context = library.llama_init_from_model(model, params)
    if not context:
        raise load_failure("make room for the context", plan.artifact.path, architecture)
    if not library.llama_get_memory(context) or not library.llama_get_causal_attn(context):
        library.llama_free(context)
        raise _encoder_error(plan.artifact.path)
    return context


def check_usable(library: Any, model: Any, path: object) -> None:
    """Refuse models that load but cannot generate text; llama.cpp would end the process.

    Raises:
        ModelFileError: no tokenizer, an encoder, or a diffusion model.
    """
    vocab = library.llama_model_get_vocab(model)
    if library.llama_vocab_type(vocab) == library.LLAMA_VOCAB_TYPE_NONE:
        raise _no_tokenizer(path)
    if library.llama_model_has_encoder(model) or not library.llama_model_has_decoder(model):
        raise _encoder_error(path)
    if library.llama_model_is_diffusion(model):
        raise ModelFileError(f"{path} is a diffusion model, which edge cannot run.", "Choose a chat model.")


def _no_tokenizer(path: object) -> ModelFileError:
    return ModelFileError(f"{path} has no tokenizer.", "Convert the model again, with its tokenizer beside it.")


def _encoder_error(path: object) -> ModelFileError:
    return ModelFileError(
        f"{path} is an encoder: it reads text but cannot chat.", "Choose a chat model; one for embeddings serves edge embed."
    )


def capabilities_of(library: Any, model: Any, n_seq: int) -> Capabilities:
    """Return what this model allows. A recurrent state cannot be truncated, and is exported as a whole only."""
    is_recurrent = library.llama_model_is_recurrent(model) or library.llama_model_is_hybrid(model)
    return Capabilities(
        rewind=not is_recurrent,
        export_kv=not is_recurrent,
        checkpoints=True,
        n_seq=n_seq,
        shared_cells=True,
        threads=True,
        free_threads=True,
        resize=True,
        adapters=True,
        # A pass may overwrite the oldest cells of a sliding window, which a rewind behind a wrong draft would need again.
        drafts=not is_recurrent and not library.llama_model_n_swa(model),
        max_outputs=0 if is_recurrent else n_seq + MAX_DRAFT,
    )


def meta(library: Any, model: Any, key: str) -> str:
    """Return a value of the model's metadata as text, "" where it is missing."""
    size = library.llama_model_meta_val_str(model, key.encode(), None, 0)
    if size < 0:
        return ""
    buffer = ctypes.create_string_buffer(size + 1)
    library.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")


def rope_variant(library: Any, model: Any, n_ctx: int) -> str:
    """Return which rotation positions get: some models (LongRoPE: Phi-3) have one for short contexts, another for long ones."""
    original = meta(library, model, f"{meta(library, model, 'general.architecture')}.rope.scaling.original_context_length")
    return "one" if not original.isdigit() else "long" if n_ctx > int(original) else "short"


def describe(library: Any, model: Any) -> ModelInfo:
    """Return what the model says about itself."""
    vocab = library.llama_model_get_vocab(model)
    file_type = library.llama_ftype_name(library.llama_model_ftype(model)) or b""
    template = library.llama_model_chat_template(model, None)
    n_swa = library.llama_model_n_swa(model)
    details = {
        "weights": file_type.decode("utf-8", "replace"),
        "layers": str(library.llama_model_n_layer(model)),
        "width": str(library.llama_model_n_embd(model)),
        "heads": f"{library.llama_model_n_head(model)} (KV {library.llama_model_n_head_kv(model)})",
        "tokenizer": _VOCAB_TYPES.get(library.llama_vocab_type(vocab), "other"),
        "sliding window": f"{n_swa:,} tokens" if n_swa else "",
        "kind": "recurrent"
        if library.llama_model_is_recurrent(model)
        else "hybrid"
        if library.llama_model_is_hybrid(model)
        else "attention",
    }
    return ModelInfo(
        name=meta(library, model, "general.name"),
        architecture=meta(library, model, "general.architecture"),
        n_params=library.llama_model_n_params(model),
        size_bytes=library.llama_model_size(model),
        n_ctx_train=library.llama_model_n_ctx_train(model),
        chat_template=template.decode("utf-8", "replace") if template else None,
        details={name: value for name, value in details.items() if value},
        **_about_vocabulary(library, vocab),
    )


def _about_vocabulary(library: Any, vocab: Any) -> dict[str, Any]:
    def text_of(token: int) -> str:
        if token < 0:
            return ""
        return str((library.llama_vocab_get_text(vocab, token) or b"").decode("utf-8", "replace"))

    return {
        "n_vocab": library.llama_vocab_n_tokens(vocab),
        "bos_text": text_of(library.llama_vocab_bos(vocab)),
        "eos_text": text_of(library.llama_vocab_eos(vocab)),
        "adds_bos": bool(library.llama_vocab_get_add_bos(vocab)),
    }
