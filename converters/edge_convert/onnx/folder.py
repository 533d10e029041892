"""What lies beside the graph in the layout of onnxruntime-genai: its configuration and the tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edge_convert.architectures import Architecture
from edge_convert.checkpoint import read_json
from edge_convert.model_config import ModelConfig
from edge_convert.tokenizer_files import load_tokenizer, remove_rowless

__all__ = ["write_genai_config", "write_tokenizer"]

_TYPES = {"gemma3": "gemma3_text", "granitemoehybrid": "granite", "olmo2": "olmo"}
_COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write_genai_config(folder: Path, model: ModelConfig, architecture: Architecture, out: Path) -> None:
    """Write genai_config.json.

    Args:
        folder: of the checkpoint; its generation_config.json and its tokenizer's files say how a reply ends and is sampled.
        model, architecture: of the checkpoint.
        out: the new folder, with the tokenizer in it.
    """
    config = read_json(folder / "config.json")
    generation = read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    named = {key: value for key, value in (config | generation).items() if value is not None}
    tokenizer = read_json(out / "tokenizer.json"), read_json(out / "tokenizer_config.json")
    ends = _listed(named.get("eos_token_id"))
    own_end = _token_id(*tokenizer, "eos_token")
    if own_end is not None and own_end not in ends:  # chat models end each turn with it, and config.json often forgets it
        ends = [own_end, *ends]
    begin, pad = (_in_range(named.get(f"{kind}_token_id"), model.n_vocab) for kind in ("bos", "pad"))
    begin = _first(begin, _token_id(*tokenizer, "bos_token"), 1)
    pad = _first(pad, _token_id(*tokenizer, "pad_token"), ends[-1] if ends else 0)
    names = {"inputs": "past_key_values", "outputs": "present"}
    ports = {
        kind: {f"{'past' if kind == 'inputs' else 'present'}_{part}_names": f"{name}.%d.{part}" for part in ("key", "value")}
        for kind, name in names.items()
    }
    written = {
        "model": {
            "bos_token_id": begin,
            "context_length": model.n_positions,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": model.head_dim,
                "hidden_size": model.width,
                "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **ports["inputs"]},
                "outputs": {"logits": "logits", **ports["outputs"]},
                "num_attention_heads": model.n_heads,
                "num_hidden_layers": model.n_layers,
                "num_key_value_heads": model.n_kv_heads,
            },
            "eos_token_id": ends[0] if len(ends) == 1 else ends,
            "pad_token_id": pad,
            "type": _TYPES.get(architecture.module, architecture.module),
            "vocab_size": model.n_vocab,
        },
        "search": {
            "diversity_penalty": 0.0,
            "do_sample": generation.get("do_sample") or False,
            "early_stopping": True,
            "length_penalty": 1.0,
            "max_length": model.n_positions,
            "min_length": 0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": _first(generation.get("temperature"), 1.0),
            "top_k": _first(generation.get("top_k"), 50),
            "top_p": _first(generation.get("top_p"), 1.0),
        },
    }
    (out / "genai_config.json").write_text(json.dumps(written, indent=4), encoding="utf-8")


def write_tokenizer(folder: Path, model: ModelConfig, out: Path, *, is_own: bool) -> None:
    """Write the tokenizer's files, with the length of the context.

    Args:
        folder: of the checkpoint.
        model: for the length, and the tokens that it has rows for.
        out: the new folder.
        is_own: edge made the files of a GGUF, so that nothing has to be corrected. Those of others go through transformers,
            which corrects some for the class that they name.
    """
    if is_own:
        for name in _COPIED:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out / name)
    else:
        load_tokenizer(folder).save_pretrained(out)
    remove_rowless(out, model.n_vocab)
    config = read_json(out / "tokenizer_config.json")
    for key in ("is_local", "local_files_only"):  # of how it was loaded
        config.pop(key, None)
    config["model_max_length"] = model.n_positions
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (out / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _listed(value: Any) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _in_range(token: int | None, n_vocab: int) -> int | None:
    """Return a token's id unless the model has no such token: some files say -1 where there is none."""
    return token if token is not None and 0 <= token < n_vocab else None


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _token_id(tokenizer: dict[str, Any], config: dict[str, Any], key: str) -> int | None:
    """Return the id of a token that a tokenizer's configuration names by its text."""
    token = config.get(key)
    text = token.get("content") if isinstance(token, dict) else token
    added = {each["content"]: each["id"] for each in tokenizer.get("added_tokens") or ()}
    vocabulary = tokenizer["model"]["vocab"]
    if text in added:
        return int(added[text])
    return int(vocabulary[text]) if isinstance(vocabulary, dict) and text in vocabulary else None
