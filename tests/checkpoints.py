"""Tiny random checkpoints of every architecture, made by transformers, with tokenizers of the kinds that real ones have.

Used by the tests of the converters. Everything is seeded; a checkpoint takes about 1 MB.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = (
    "llama",
    "llama3",
    "llama-linear",
    "qwen2",
    "qwen2-yarn",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-long",
    "phi4",
    "smollm3",
    "granite",
    "granite4",
    "olmo2",
    "qwen3moe",
    "lfm2",
)
"""Names for `make_checkpoint`; the part before "-" or the digit's version is a row of the table of architectures."""

ARCHITECTURE_OF = {
    "llama": "LlamaForCausalLM",
    "llama3": "LlamaForCausalLM",
    "llama-linear": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2-yarn": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "phi3-long": "Phi3ForCausalLM",
    "phi4": "Phi3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "granite4": "GraniteMoeHybridForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
}

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = Path(__file__).parents[1] / "LICENSE"
_FOREIGN = (
    "Ünïcödé größer çà señor 日本語のテキスト 中文字符 русский текст العربية 한국어 🚀🙂👩‍👩‍👧 "
    "1234567890 3.14 x² ½ ﬁ Ⅷ\n\n\t  tabs\r\n"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# The regular expressions of the tokenizers named, as their tokenizer.json files have them.
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZERS = ("gpt2", "smollm", "llama3", "qwen2", "tekken", "gpt4o", "phi4", "llama2", "gemma", "phi3")
_TOKENIZER_OF = {
    "llama": "smollm",
    "llama3": "llama3",
    "llama-linear": "llama2",
    "qwen2": "qwen2",
    "qwen2-yarn": "qwen2",
    "qwen3": "qwen2",
    "mistral": "tekken",
    "gemma2": "gemma",
    "gemma3": "gemma",
    "phi3": "phi3",
    "phi3-long": "phi3",
    "phi4": "phi4",
    "smollm3": "llama3",
    "granite": "smollm",
    "granite4": "phi4",
    "olmo2": "phi4",
    "qwen3moe": "qwen2",
    "lfm2": "llama3",
}
GGUF_ONLY = ("qwen3moe", "lfm2")
"""Kinds that only llama.cpp runs."""
_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.125,
    "logits_scaling": 2.5,
}


def make_checkpoint(folder: Path, kind: str, *, shards: bool = False, dtype: str = "float32", **changes: Any) -> Path:
    """Make a tiny random checkpoint.

    Args:
        folder: where; made if it is not there.
        kind: one of KINDS.
        shards: split the weights over several files.
        dtype: of the weights.
        changes: keys of the config to set otherwise.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = make_tokenizer(folder, _TOKENIZER_OF[kind])
    config = _config(kind, len(tokenizer), changes)
    torch.manual_seed(sum(map(ord, kind)))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # sharper than transformers' 0.02, so that a wrong layout shows in the logits
                parameter.normal_(0, 0.5 if "embed" in name else 0.12)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="200KB" if shards else "1GB")
    if kind == "granite4":  # as the files on the Hub name their layers
        config = json.loads((folder / "config.json").read_text())
        config["layer_types"] = ["attention"] * len(config["layer_types"])
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nMade by a test.\n")
    return folder


def make_tokenizer(folder: Path, kind: str) -> Any:
    """Train a small tokenizer of a kind (see TOKENIZERS) and save it."""
    from transformers import PreTrainedTokenizerFast

    is_sentencepiece = kind in ("llama2", "gemma", "phi3")
    tokenizer = _sentencepiece(kind) if is_sentencepiece else _byte_level(kind)
    folder.mkdir(parents=True, exist_ok=True)
    begin, end = ("<s>", "</s>") if is_sentencepiece else ("<|endoftext|>", "<|im_end|>")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, unk_token="<unk>" if is_sentencepiece else None
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
    return wrapped


def add_tokens(folder: Path, tokens: dict[str, bool]) -> None:
    """Put added tokens behind all others in a folder's tokenizer; each is special or not."""
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    first = max([len(described["model"]["vocab"]), *(token["id"] + 1 for token in described["added_tokens"])])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for id, (text, is_special) in enumerate(tokens.items(), first):
        described["added_tokens"].append({"id": id, "content": text, "special": is_special, **flags})
    path.write_text(json.dumps(described), encoding="utf-8")


def _config(kind: str, n_vocab: int, changes: dict[str, Any]) -> Any:
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": n_vocab,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    make: dict[str, Callable[..., Any]] = {
        "llama": lambda **k: transformers.LlamaConfig(tie_word_embeddings=True, **k),
        "llama3": lambda **k: transformers.LlamaConfig(
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            **k,
        ),
        "llama-linear": lambda **k: transformers.LlamaConfig(
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, **k
        ),
        "qwen2": lambda **k: transformers.Qwen2Config(**k),
        "qwen2-yarn": lambda **k: transformers.Qwen2Config(
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
            **k,
        ),
        "qwen3": lambda **k: transformers.Qwen3Config(head_dim=64, tie_word_embeddings=True, **k),
        "mistral": lambda **k: transformers.MistralConfig(head_dim=64, **({"sliding_window": None} | k)),
        "gemma2": lambda **k: transformers.Gemma2Config(head_dim=32, query_pre_attn_scalar=32, sliding_window=16, **k),
        "gemma3": lambda **k: transformers.Gemma3TextConfig(
            head_dim=32, query_pre_attn_scalar=32, sliding_window=16, **(k | {"num_hidden_layers": 7})
        ),
        "phi3": lambda **k: transformers.Phi3Config(**k),
        "phi3-long": lambda **k: transformers.Phi3Config(
            original_max_position_embeddings=128,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0 + 0.02 * i for i in range(16)],
                "long_factor": [1.0 + 0.3 * i for i in range(16)],
                "original_max_position_embeddings": 128,
            },
            **k,
        ),
        "smollm3": lambda **k: transformers.SmolLM3Config(**(k | {"num_hidden_layers": 5})),
        "granite": lambda **k: transformers.GraniteConfig(tie_word_embeddings=True, **_MULTIPLIERS, **k),
        "granite4": lambda **k: transformers.GraniteMoeHybridConfig(
            **_MULTIPLIERS,
            num_local_experts=0,
            num_experts_per_tok=0,
            shared_intermediate_size=256,
            position_embedding_type="rope",
            layer_types=["full_attention"] * 2,
            mamba_n_heads=4,
            **k,
        ),
        "olmo2": lambda **k: transformers.Olmo2Config(**k),
        "qwen3moe": lambda **k: transformers.Qwen3MoeConfig(
            head_dim=32, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, **k
        ),
        "lfm2": lambda **k: transformers.Lfm2Config(layer_types=["conv", "full_attention"], conv_L_cache=3, **k),
        "phi4": lambda **k: transformers.Phi3Config(
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 250000.0, "partial_rotary_factor": 0.75},
            **k,
        ),
    }
    return make[kind](**(sizes | changes))


def _byte_level(kind: str) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    # Where a whole word that is a token is never put together from its parts.
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind in ("llama3", "tekken")))
    if kind in ("gpt2", "smollm"):
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = words if kind == "gpt2" else pre_tokenizers.Sequence([digits, words])
    else:
        pattern = {"llama3": _LLAMA3, "qwen2": _QWEN2, "tekken": _TEKKEN, "gpt4o": _GPT4O, "phi4": _LLAMA3}[kind]
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT.read_text(encoding="utf-8"), _FOREIGN * 4], trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def _sentencepiece(kind: str) -> Any:
    """As transformers makes it of a sentencepiece BPE model: every way to put a piece together is a merge."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = [*string.printable[:95], "▁", "ü", "é", "日", "本"]
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([_TEXT.read_text(encoding="utf-8"), "größer señor 日本語"], trainer)
    model = json.loads(trained.to_str())["model"]
    made = ["".join(merge) for merge in model["merges"]]
    chars = [piece for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1]) if piece not in set(made)]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(made), *chars]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in dict.fromkeys(made)
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        spaces if kind == "gemma" else normalizers.Sequence([normalizers.Prepend("▁"), spaces])  # type: ignore[arg-type]
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts if kind == "gemma" else [*parts, decoders.Strip(" ", 1, 0)])
    swallowing = ("</s>", *_SPECIAL[1:]) if kind == "phi3" else ()
    specials = [
        AddedToken(text, special=True, normalized=False, rstrip=text in swallowing)
        for text in ("<unk>", "<s>", "</s>", *_SPECIAL)
    ]
    tokenizer.add_special_tokens(specials)
    if kind != "phi3":
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer
