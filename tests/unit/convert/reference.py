"""Logits of a model by llama.cpp and by transformers: both sides of every comparison."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


def logits_of_gguf(path: Path, tokens: Sequence[int], n_context: int, adapters: Mapping[Path, float] | None = None) -> Logits:
    """Logits of every token, [n_tokens, n_vocab], by llama.cpp without any of its shortcuts, with adapters at scales."""
    from llama_cpp import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    assert model
    loaded = [llama_cpp.llama_adapter_lora_init(model, str(adapter).encode()) for adapter in adapters or {}]
    assert all(loaded)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = n_context
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0  # float32
    params.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, params)
    if adapters:
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * len(loaded))(*loaded)
        scales = (ctypes.c_float * len(loaded))(*adapters.values())
        assert llama_cpp.llama_set_adapters_lora(context, pointers, len(loaded), scales) == 0
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    assert llama_cpp.llama_decode(context, batch) == 0
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (n_vocab,)).copy() for i in range(len(tokens))]
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    llama_cpp.llama_log_set(ctypes.cast(None, llama_cpp.llama_log_callback), None)
    return np.stack(rows)


def logits_of_checkpoint(folder: Path, tokens: Sequence[int]) -> Logits:
    """The same by transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits: Logits = model(torch.tensor([list(tokens)])).logits[0].numpy()
    return logits


def some_tokens(count: int, n_vocab: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(7).integers(3, n_vocab, count)]
