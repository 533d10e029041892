"""config.json is checked once, for all formats: wrong types, impossible numbers, and what would change the arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

from edge.errors import ModelFileError
from edge_convert.architectures import ARCHITECTURES
from edge_convert.checkpoint import open_checkpoint
from edge_convert.model_config import read_model_config
from edge_convert.shapes import HEAD, check_tensors, tensor_shapes
from tests.checkpoints import ARCHITECTURE_OF, KINDS, make_checkpoint

Make = Callable[[str], Path]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_transformers(kind: str, tiny_checkpoint: Make) -> None:
    from transformers import AutoConfig

    config, model = AutoConfig.from_pretrained(tiny_checkpoint(kind)), open_checkpoint(tiny_checkpoint(kind)).model
    assert model.head_dim == getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert model.n_kv_heads == config.num_key_value_heads
    assert model.norm_eps == (getattr(config, "rms_norm_eps", None) or config.norm_eps)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    assert list(model.layer_kinds) == list(kinds)


@pytest.mark.parametrize("period", [2, 3, 6])
def test_an_older_config_of_gemma_3_names_the_period_of_its_windows(period: int, tiny_checkpoint: Make) -> None:
    from transformers import AutoConfig

    config = config_of(tiny_checkpoint("gemma3"))
    older = {key: value for key, value in config.items() if key not in ("layer_types", "_sliding_window_pattern")}
    older["sliding_window_pattern"] = period
    expected = AutoConfig.for_model(**older).layer_types
    assert list(read_model_config(older, ARCHITECTURES["Gemma3ForCausalLM"], "test").layer_kinds) == expected
    assert expected.count("full_attention") == 7 // period


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0},
    ],
)
def test_the_base_of_positions_is_read_whatever_scales_them(scaling: dict[str, Any], is_new: bool) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"max_position_embeddings": 512, "num_key_value_heads": 4}
    given: dict[str, Any] = {"rope_theta": 5e5, "rope_scaling": scaling}
    given = {"rope_parameters": {**scaling, "rope_theta": 5e5}} if is_new else given
    for name in ("LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM"):
        assert read_model_config({**sizes, **given}, ARCHITECTURES[name], "test").rope.theta == 5e5


@pytest.mark.parametrize(
    "kind", sorted(set(KINDS) - {"llama-linear", "qwen2-yarn", "phi3-long", "phi4", "granite4", "qwen3moe", "lfm2"})
)
def test_defaults_are_those_of_transformers(kind: str) -> None:
    """What a config.json leaves out has the value that transformers gives it."""
    from transformers import AutoConfig

    architecture = ARCHITECTURES[ARCHITECTURE_OF[kind]]
    sizes = {"vocab_size": 64, "hidden_size": 4096, "intermediate_size": 64, "num_hidden_layers": 31}
    sizes |= {"num_attention_heads": 32, "max_position_embeddings": 8192}
    config = AutoConfig.for_model(architecture.model_type, **sizes)
    model = read_model_config(sizes, architecture, "test")
    assert model.n_kv_heads == config.num_key_value_heads
    assert model.head_dim == (getattr(config, "head_dim", None) or 128)
    assert model.norm_eps == config.rms_norm_eps
    assert model.says_tied == config.tie_word_embeddings
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * 31
    assert list(model.layer_kinds) == kinds
    assert model.window == (window if "sliding_attention" in kinds else None)
    assert list(model.rotates) == [bool(turns) for turns in getattr(config, "no_rope_layers", None) or [1] * 31]
    assert (model.branch_scale, model.logit_divisor) == (1.0, 1.0)
    if kind == "granite":
        assert (model.embedding_scale, model.attention_scalar) == (config.embedding_multiplier, config.attention_multiplier)
    rope = config.rope_parameters
    assert model.rope.theta == rope.get("full_attention", rope)["rope_theta"]
    assert (model.attention_cap, model.final_cap) == (
        getattr(config, "attn_logit_softcapping", None),
        getattr(config, "final_logit_softcapping", None),
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({key: value}, key) for key in ("head_dim", "num_key_value_heads") for value in (0, -1, "abc", 2**40, 1.5, [])),
        *(({"max_position_embeddings": value}, "max_position_embeddings") for value in (0, -5, None, "2048", 2**80)),
        *(({"rms_norm_eps": value}, "rms_norm_eps") for value in (0, -1e-6, 2.0, "tiny", [1e-6], None)),
        *(({"rope_parameters": {"rope_theta": value}}, "rope_theta") for value in (0, -1.0, [1e4], "1e4", True)),
        *(({"rope_parameters": value}, "rope_parameters") for value in ("linear", [1], 7)),
        *(({key: value}, key) for key in ("bos_token_id", "eos_token_id") for value in (10_000, -1, "x")),
        ({"eos_token_id": [2, 10_000]}, "eos_token_id is 10000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_attention_heads": 7}, "multiple"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"head_dim": 31}, "odd"),
        ({"hidden_act": "relu"}, "activation is relu"),
        ({"hidden_act": 3}, "hidden_act"),
        ({"dtype": 16}, "dtype"),
        ({"model_type": "mistral"}, "model_type"),
        ({"model_type": []}, "model_type"),
        ({"partial_rotary_factor": 0.5}, "ignores"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "ignores"),
        ({"rope_parameters": {"rope_type": "linear"}}, "lack factor"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "spiral"),
        ({"rope_parameters": {**YARN, "twist": 2}}, "twist"),
        ({"rope_parameters": {**YARN, "beta_fast": "x"}}, "beta_fast"),
        ({"use_bidirectional_attention": True}, "later tokens"),
    ],
)
def test_wrong_values_are_refused_by_name(changes: dict[str, Any], words: str, tiny_checkpoint: Make, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in tiny_checkpoint("llama").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config_of(tiny_checkpoint("llama")), **changes}))
    with pytest.raises(ModelFileError, match=words):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ['{"rms_norm_eps": NaN}', '{"a":' * 5_000 + "1" + "}" * 5_000, "[]", '{"a": 1e999}'])
def test_files_that_are_no_configuration(text: str, tiny_checkpoint: Make, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"config\.json is damaged"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("changes", [{"quantization_config": None}, {"quantization_config": False}, {"pad_token_id": -1}])
def test_harmless_values_are_taken(changes: dict[str, Any], tiny_checkpoint: Make, tmp_path: Path) -> None:
    for path in tiny_checkpoint("llama").iterdir():
        if path.name != "config.json":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").write_text(json.dumps({**config_of(tiny_checkpoint("llama")), **changes}))
    assert open_checkpoint(tmp_path).model.pad is None or "pad_token_id" not in changes


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3", "phi3"])
def test_every_tensor_has_the_shape_that_the_configuration_says(kind: str, tiny_checkpoint: Make) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(kind))
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    assert set(shapes) - {HEAD} == set(tensor_shapes(checkpoint.architecture, checkpoint.model))
    shapes.setdefault(HEAD, shapes["model.embed_tokens.weight"])
    check_tensors(shapes, checkpoint.architecture, checkpoint.model)
    for name, shape in shapes.items():
        for wrong in ((shape[0] + 2, *shape[1:]), (0, *shape[1:]), (*shape, 1), tuple(reversed(shape))):
            if wrong == shape:
                continue
            with pytest.raises(ModelFileError, match=name.replace(".", r"\.") + " has the shape"):
                check_tensors({**shapes, name: wrong}, checkpoint.architecture, checkpoint.model)


def test_a_head_that_differs_from_the_embedding_is_not_tied(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = make_checkpoint(tmp_path / "checkpoint", "llama")
    weights = load_file(folder / "model.safetensors")
    weights[HEAD] = weights["model.embed_tokens.weight"].copy()
    save_file(weights, folder / "model.safetensors")
    assert open_checkpoint(folder).is_tied
    weights[HEAD][3, 4] += 1
    save_file(weights, folder / "model.safetensors")
    assert not open_checkpoint(folder).is_tied


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("granite4", {"layer_types": ["mamba", "attention"]}, "it has Mamba layers"),
        ("granite4", {"layer_types": None}, "it has Mamba layers"),
        ("granite4", {"num_local_experts": 8}, "it has experts"),
        ("granite4", {"position_embedding_type": "nope"}, "no positions"),
        ("smollm3", {"no_rope_layers": [1, 1]}, "names 2 of 5 layers"),
        ("granite", {"logits_scaling": 0}, "logits_scaling"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob is off"),
        ("qwen3moe", {"mlp_only_layers": [0]}, "only some of its layers"),
        ("qwen3moe", {"num_experts_per_tok": 5}, "there are 4 experts"),
        ("lfm2", {"layer_types": ["conv", "sliding_attention"]}, "layer_types names conv, sliding_attention"),
        ("lfm2", {"conv_bias": True}, "have a bias"),
    ],
)
def test_variants_of_newer_families_are_refused(kind: str, changes: dict[str, Any], words: str, tiny_checkpoint: Make) -> None:
    config = config_of(tiny_checkpoint(kind)) | changes
    with pytest.raises(ModelFileError, match=words) as caught:
        read_model_config(config, ARCHITECTURES[ARCHITECTURE_OF[kind]], "test")
    assert "GGUF" in caught.value.hint or kind != "granite4"


def test_older_names_of_layers_mean_the_same(tiny_checkpoint: Make) -> None:
    """Files on the Hub call the layers of a Granite 4 "attention", newer versions of transformers "full_attention"."""
    config = config_of(tiny_checkpoint("granite4"))
    newer = config | {"layer_types": ["full_attention"] * 2}
    architecture = ARCHITECTURES["GraniteMoeHybridForCausalLM"]
    assert read_model_config(newer, architecture, "test") == read_model_config(config, architecture, "test")


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 1]}, "other layers"),
        ("smollm3", {"mlp_bias": True}, "bias"),
        (
            "olmo2",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 1e4,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                }
            },
            "scaled by llama3",
        ),
        ("olmo2", {"head_dim": 64}, "not as wide"),
    ],
)
def test_what_llama_cpp_takes_for_granted(kind: str, changes: dict[str, Any], words: str, tiny_checkpoint: Make) -> None:
    from edge_convert.gguf.limits import check_config

    architecture = ARCHITECTURES[ARCHITECTURE_OF[kind]]
    config = config_of(tiny_checkpoint(kind))
    check_config(read_model_config(config, architecture, "test"), architecture)
    with pytest.raises(ModelFileError, match=words):
        check_config(read_model_config(config | changes, architecture, "test"), architecture)


@pytest.mark.parametrize("multiplier", [1.0, 1.3])
def test_lfm2_computes_the_width_of_its_feed_forward_half(multiplier: float) -> None:
    """The width is that of the matrices that transformers makes, whichever key names it."""
    from transformers import Lfm2Config
    from transformers.models.lfm2.modeling_lfm2 import Lfm2MLP

    for key in ("block_ff_dim", "intermediate_size"):
        sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, key: 1000}
        sizes |= {"max_position_embeddings": 64, "num_key_value_heads": 2}
        changes = {"block_ffn_dim_multiplier": multiplier, "full_attn_idxs": [1], "tie_embedding": False}
        expected = Lfm2Config(**sizes, **changes)  # type: ignore[arg-type]
        model = read_model_config({**sizes, **changes}, ARCHITECTURES["Lfm2ForCausalLM"], "test")
        assert model.inner == Lfm2MLP(expected).w1.out_features
        assert list(model.layer_kinds) == expected.layer_types == ["conv", "full_attention", "conv"]
        assert (model.says_tied, model.norm_eps, model.rope.theta) == (False, expected.norm_eps, 1e6)
