"""Orders of passages: the next prompt begins as an earlier one, as far as it can."""

from __future__ import annotations

import random
from pathlib import Path

from edge.grounding.order import Orders


def test_without_a_past_the_order_is_the_one_that_is_given() -> None:
    assert Orders().arrange(["a", "b", "c"]) == ["a", "b", "c"]


def test_a_prompt_begins_as_the_one_that_shares_most() -> None:
    orders = Orders()
    orders.note(["c", "a", "x"])
    orders.note(["b", "y"])
    assert orders.arrange(["a", "b", "c"])[:2] == ["c", "a"]


def test_what_is_asked_for_most_often_follows_first() -> None:
    orders = Orders()
    orders.note(["x", "d"])
    orders.note(["y", "d"])
    orders.note(["z", "b"])
    assert orders.arrange(["a", "b", "d"]) == ["d", "b", "a"]


def test_nothing_is_lost_or_doubled_and_a_shared_prefix_is_never_shorter_than_by_position() -> None:
    rng, orders, past = random.Random(7), Orders(), []

    def shared(order: list[str]) -> int:
        n_equal = [
            next((n for n, (a, b) in enumerate(zip(order, old, strict=False)) if a != b), min(len(order), len(old)))
            for old in past
        ]
        return max(n_equal, default=0)

    for _ in range(300):
        wanted = sorted(rng.sample("abcdefghij", 4))
        arranged = orders.arrange(wanted)
        assert sorted(arranged) == wanted
        assert shared(arranged) >= shared(wanted)
        orders.note(arranged)
        past.append(arranged)


def test_orders_outlive_the_process_in_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "manual" / "orders.json"
    Orders(file).note(["b", "a"])
    assert Orders(file).arrange(["a", "b"]) == ["b", "a"]
    assert file.stat().st_mode & 0o077 == 0
    assert Orders(file).popular == ["b", "a"]


def test_a_damaged_file_is_done_without(tmp_path: Path) -> None:
    file = tmp_path / "orders.json"
    file.write_bytes(b'{"orders": [[1, {"a": 2}]]}')
    assert Orders(file).arrange(["a", "b"]) == ["a", "b"]


def test_a_folder_that_cannot_be_written_costs_only_speed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    orders = Orders(tmp_path / "file" / "orders.json")
    orders.note(["b", "a"])
    assert orders.arrange(["a", "b"]) == ["b", "a"]
