"""Checkpoints are opened without their weights, and what is wrong with one is said by name before anything is converted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

from edge.errors import ModelFileError, ModelNotFoundError
from edge_convert.architectures import ARCHITECTURES, REFUSED
from edge_convert.checkpoint import open_checkpoint
from tests.checkpoints import KINDS, TEMPLATE, make_checkpoint

Make = Callable[[str], Path]
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sharded"), "llama3", shards=True, dtype="bfloat16")


@pytest.fixture
def copy(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "copy"))


def change(path: Path, **keys: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **keys}))


def test_a_sharded_checkpoint(sharded: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(sharded, source="hf:owner/name@abc")
    assert checkpoint.name == "name"
    assert len(checkpoint.shards) > 1
    assert (checkpoint.licence, checkpoint.chat_template, checkpoint.is_tied) == ("apache-2.0", TEMPLATE, False)
    assert checkpoint.source_quantised is None
    model = AutoModelForCausalLM.from_pretrained(sharded, dtype=torch.bfloat16)
    weights = dict(model.named_parameters())
    assert set(checkpoint.tensors) == set(weights)
    assert checkpoint.n_params == sum(weight.numel() for weight in weights.values())
    assert checkpoint.f16_bytes == 2 * checkpoint.n_params
    for name in ("model.layers.1.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"):
        assert np.array_equal(checkpoint.load_f32(name), weights[name].detach().float().numpy())
        assert checkpoint.load(name).dtype.name == "bfloat16"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_recognised(kind: str, tiny_checkpoint: Make) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(kind))
    assert checkpoint.source == str(tiny_checkpoint(kind))
    assert checkpoint.is_tied == ("lm_head.weight" not in checkpoint.tensors)


def test_missing_shards_are_named(copy: Path) -> None:
    shards = sorted(copy.glob("model-*.safetensors"))
    shards[1].unlink()
    with pytest.raises(ModelFileError, match=rf"incomplete: {shards[1].name} is missing"):
        open_checkpoint(copy)
    shards[0].unlink()
    with pytest.raises(ModelFileError, match=rf"{shards[0].name}, {shards[1].name} are missing"):
        open_checkpoint(copy)


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "overlap"])
def test_corrupt_shards_are_named(damage: str, copy: Path) -> None:
    shard = sorted(copy.glob("model-*.safetensors"))[1]
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if damage == "overlap":
        name = next(name for name in header if name != "__metadata__")
        header[name]["data_offsets"][1] += 8
        text = json.dumps(header).encode()
        data = len(text).to_bytes(8, "little") + text + data[8 + length :]
    else:
        data = {"cut": data[:-10], "header": data[:8] + b"x" + data[9:], "empty": b""}[damage]
    shard.write_bytes(data)
    with pytest.raises(ModelFileError, match=rf"{shard.name} is damaged or truncated"):
        open_checkpoint(copy)


def test_pickle_is_refused(copy: Path) -> None:
    for path in copy.glob("model*"):
        path.unlink()
    with pytest.raises(ModelFileError, match="no weights"):
        open_checkpoint(copy)
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelFileError, match=r"as pickle \(pytorch_model\.bin\)"):
        open_checkpoint(copy)


def test_decoders_that_make_embeddings_are_refused(copy: Path) -> None:
    (copy / "modules.json").write_text("[]")
    with pytest.raises(ModelFileError, match="makes embeddings with a decoder") as caught:
        open_checkpoint(copy)
    assert "edge embed" in caught.value.hint


def test_families_that_users_bring_are_refused_with_what_works(copy: Path) -> None:
    for refused in REFUSED:
        for name in refused.names:
            assert name not in ARCHITECTURES
            change(copy / "config.json", architectures=[name])
            with pytest.raises(ModelFileError, match=f"is a {refused.title}, which edge does not convert") as caught:
                open_checkpoint(copy)
            assert caught.value.hint == refused.instead


def test_unknown_architectures_are_named_with_those_known(copy: Path) -> None:
    change(copy / "config.json", architectures=["MambaForCausalLM"])
    with pytest.raises(ModelFileError, match="is a MambaForCausalLM") as caught:
        open_checkpoint(copy)
    assert all(name in caught.value.hint for name in ARCHITECTURES)
    change(copy / "config.json", architectures=None)
    with pytest.raises(ModelFileError, match="names no architecture"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, r"already quantised \(gptq\)"),
        ({"quantization_config": "gptq"}, r"already quantised \(unknown\)"),
        ({"hidden_size": None}, "hidden_size is null, and should be a whole number"),
        ({"num_hidden_layers": 3}, r"lacks the tensor model\.layers\.2\.self_attn\.q_proj\.weight and 8 more"),
        ({"num_hidden_layers": 1}, r"holds model\.layers\.1\..* which a LlamaForCausalLM does not have"),
        ({"hidden_size": 256}, r"embed_tokens\.weight has the shape .* and the model's configuration says \(\d+, 256\)"),
        ({"vocab_size": 7}, r"embed_tokens\.weight has the shape .* and the model's configuration says \(7, 128\)"),
        ({"intermediate_size": 512}, r"mlp\.\w+_proj\.weight has the shape .* and the model's configuration says .*512"),
    ],
)
def test_configs_that_do_not_fit(keys: dict[str, object], message: str, copy: Path) -> None:
    change(copy / "config.json", **keys)
    with pytest.raises(ModelFileError, match=message):
        open_checkpoint(copy)


def test_an_index_may_not_point_elsewhere(copy: Path) -> None:
    index = json.loads((copy / INDEX).read_text())
    name = next(iter(index["weight_map"]))
    for target, message in (("../model.safetensors", "not a safetensors file beside it"), (None, "no weight_map")):
        index["weight_map"][name] = target
        (copy / INDEX).write_text(json.dumps(index))
        with pytest.raises(ModelFileError, match=message):
            open_checkpoint(copy)


def test_other_missing_files(copy: Path, tmp_path: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"no tokenizer\.json"):
        open_checkpoint(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"config\.json is damaged"):
        open_checkpoint(copy)
    (copy / "config.json").unlink()
    with pytest.raises(ModelFileError, match=r"no config\.json"):
        open_checkpoint(copy)
    with pytest.raises(ModelNotFoundError, match="no folder"):
        open_checkpoint(tmp_path / "nowhere")
