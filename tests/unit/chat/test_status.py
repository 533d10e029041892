from __future__ import annotations

from dataclasses import replace

import pytest
from rich.cells import cell_len

from edge_chat.widgets.status import StatusValues, fit_parts

FULL = StatusValues(
    activity="",
    backend="llamacpp",
    accelerator="cpu",
    model="SmolLM2-135M-Instruct",
    used=1204,
    total=8192,
    first_token_ms=312,
    tokens_per_s=34.2,
    n_reused=1180,
    n_prompt=1190,
    has_reply=True,
)


def test_everything_is_shown_where_there_is_room() -> None:
    assert fit_parts(FULL.parts(), 200, " · ") == (
        "CPU llama.cpp · SmolLM2-135M-Instruct · context 1,204/8,192 (15 %) · 34.2 tok/s · first token 0.31 s · "
        "reused 1,180 of 1,190"
    )


@pytest.mark.parametrize("width", range(1, 140))
def test_it_fits_every_width(width: int) -> None:
    assert cell_len(fit_parts(FULL.parts(), width, " · ")) <= width


def test_the_least_important_goes_first() -> None:
    line = fit_parts(FULL.parts(), 76, " · ")
    assert line == "SmolLM2-135M-Instruct · context 1,204/8,192 (15 %) · 34.2 tok/s"


def test_values_of_a_saved_reply() -> None:
    record = {
        "usage": {"n_prompt": 100, "n_reused": 60, "n_generated": 11},
        "timing": {"first_token_ms": 50.0, "decode_ms": 500.0},
        "plan": None,
    }
    values = StatusValues().with_record(record)
    assert (values.used, values.n_reused, values.n_prompt) == (111, 60, 100)
    assert values.tokens_per_s == pytest.approx(20)


@pytest.mark.parametrize(
    ("usage", "text"),
    [
        ({"n_reused": 60}, "reused 60 of 100"),
        ({"n_reused": 60, "saved_ms": 1500.0}, "reused 60 of 100 · 1.50 s saved"),
        ({"n_reused": 60, "n_drafted": 12, "n_accepted": 9}, "reused 60 of 100 · guessed 9 of 12"),
        ({"n_reused": 60, "n_restored": 50, "saved_ms": 20_000.0}, "reused 60 of 100 · 50 from disk, 20 s saved"),
        ({"n_reused": 60, "n_restored": 50, "n_foreign": 40}, "reused 60 of 100 · 50 from disk (another engine's)"),
        ({"n_reused": 100, "is_answer_cached": True}, "cached answer"),
    ],
)
def test_where_a_prompt_came_from(usage: dict[str, object], text: str) -> None:
    values = StatusValues().with_record({"usage": {"n_prompt": 100, **usage}})
    assert fit_parts(values.parts(), 200, " · ").endswith(text)
    # Where there is little room, how much was reused stays longest.
    assert fit_parts(values.parts(), 16, " · ") == text.partition(" · ")[0]


@pytest.mark.parametrize("record", [{}, {"usage": None}, {"usage": "x", "timing": []}, {"usage": {"n_prompt": "7"}}])
def test_strange_records_do_no_harm(record: dict[str, object]) -> None:
    assert StatusValues().with_record(record).used == 0


def test_values_while_a_reply_is_written() -> None:
    assert fit_parts(FULL.while_running(500, 0, 0.0, 0.0).parts(), 200, " · ") == (
        "CPU llama.cpp · SmolLM2-135M-Instruct · context 500/8,192 (6 %)"
    )
    writing = FULL.while_running(1190, 21, 0.5, 2.0)
    assert fit_parts(writing.parts(), 200, " · ").endswith("context 1,211/8,192 (15 %) · 10.0 tok/s · first token 0.50 s")


@pytest.mark.parametrize(("n_generated", "decode_s"), [(1, 0.0), (2, 0.000_01), (40, 0.49)])
def test_no_speed_is_shown_before_it_is_measured(n_generated: int, decode_s: float) -> None:
    """Pieces that waited for a busy screen arrive at once, and are no measure."""
    assert "tok/s" not in fit_parts(FULL.while_running(1190, n_generated, 0.5, decode_s).parts(), 200, " · ")


def test_unknown_values_are_left_out() -> None:
    assert fit_parts(StatusValues(activity="loading x").parts(), 80, " · ") == "loading x"
    assert fit_parts(StatusValues().parts(), 80, " · ") == ""


def test_a_window_that_was_made_smaller_is_full_and_not_more() -> None:
    assert "context 1,024/1,024 (100 %)" in fit_parts(replace(FULL, total=1024).parts(), 200, " · ")


def test_throttling_stays_where_there_is_little_room() -> None:
    held = replace(FULL, throttled="hot: 2 of 4 threads")
    assert fit_parts(held.parts(), 200, " · ").startswith("hot: 2 of 4 threads · CPU llama.cpp · SmolLM2-135M-Instruct")
    assert fit_parts(held.parts(), 45, " · ") == "hot: 2 of 4 threads · SmolLM2-135M-Instruct"
    assert fit_parts(held.parts(), 25, " · ") == "hot: 2 of 4 threads"


def test_a_failed_disk_cache_is_shown() -> None:
    failed = replace(FULL, has_disk=False)
    assert fit_parts(failed.parts(), 200, " · ").startswith("disk cache off · CPU llama.cpp")
    assert fit_parts(failed.parts(), 40, " · ") == "disk cache off · SmolLM2-135M-Instruct"
