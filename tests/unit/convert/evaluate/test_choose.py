"""The choice for this device: the fastest of those that are good enough, with a reason for each."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edge.errors import QualityGateError, UsageError
from edge_convert.choose import CANDIDATES, choose, with_candidates
from edge_convert.evaluate.card import Card, Failure, Row, Speed
from edge_convert.evaluate.metrics import Quality, Scores
from edge_convert.facts import Request
from edge_convert.inputs import Input

SCORES = Scores(n_tokens=10, perplexity=10.0, reference_perplexity=10.0, kl_mean=0.05, kl_p99=0.2, top1=0.95)


def row(name: str, prefill: float, decode: float, *failures: Failure, is_reference: bool = False) -> Row:
    return Row(
        name=name,
        format="gguf",
        size_bytes=1,
        tool="test",
        is_reference=is_reference,
        quality=Quality(prose=SCORES, chat=None, all=SCORES, divergence=(), n_answer=0),
        speed=Speed(load_s=1.0, prefill_tokens_per_s=prefill, decode_tokens_per_s=decode, peak_bytes=1),
        failures=failures,
    )


def card(*rows: Row) -> Card:
    return Card(
        reference="source",
        n_prose=1,
        n_prompts=0,
        n_answer=0,
        n_rounds=1,
        n_prefill=1,
        n_decode=1,
        machine="test",
        gate="kl=0.1",
        rows=(row("source", 9_999, 9_999, is_reference=True), *rows),
    )


BAD = Failure("kl", 0.4, 0.1)


def test_the_fastest_that_meets_the_gate() -> None:
    choice = choose(card(row("slow", 100, 20), row("bad", 400, 40, BAD), row("fast", 200, 32), row("reader", 500, 10)))
    assert choice.index == 2
    assert choice.reasons == (
        "fast is chosen: 5.3 s for 256 tokens read and 128 written, the fastest here of the 3 that meet kl=0.1.",
        "slow is slower: 9.0 s for 256 tokens read and 128 written.",
        "reader is slower: 13.3 s for 256 tokens read and 128 written.",
        "bad is not good enough: kl is 0.4, 0.3 above the limit of 0.1.",
    )


def test_nothing_good_enough() -> None:
    with pytest.raises(QualityGateError, match=r"No candidate meets the gate \(kl=0.1\). bad: kl is 0.4"):
        choose(card(row("bad", 400, 40, BAD)))


def test_what_does_not_run_here_is_said_and_not_chosen() -> None:
    import msgspec

    package = msgspec.structs.replace(row("package", 1, 1), speed=None)
    choice = choose(card(package, row("good", 100, 20)))
    assert choice.index == 1
    assert choice.reasons[1:] == ("package does not run here, so it was not timed.",)


def test_without_speeds() -> None:
    import msgspec

    with pytest.raises(UsageError, match="no speeds"):
        choose(card(msgspec.structs.replace(row("x", 1, 1), speed=None)))


@pytest.mark.parametrize(
    ("own", "expected"),
    [("MOSTLY_Q4_1", ("Q4_1", *CANDIDATES)), ("MOSTLY_Q8_0", CANDIDATES), ("MOSTLY_F16", CANDIDATES)],
)
def test_blocks_that_a_source_has_already_are_a_candidate(own: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_file_type(gguf.LlamaFileType[own])
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    kind = gguf.GGMLQuantizationType[own.removeprefix("MOSTLY_")]
    blocks = gguf.quants.quantize(np.ones((64, 64), dtype=np.float32), kind)
    writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = Input(kind="gguf", path=tmp_path / "m.gguf", source="m.gguf")
    assert with_candidates(Request(), source).gguf.quantisations == expected
    folder = Input(kind="checkpoint", path=tmp_path, source="m")
    assert with_candidates(Request(), folder).gguf.quantisations == CANDIDATES
