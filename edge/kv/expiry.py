"""Ends what has a limit: pins that end, blocks that nobody used for too long, blocks beyond the budget of their model.

Others may use the store meanwhile, as in maintenance.py. Functions raise OSError or sqlite3.Error if the disk fails, with part
of their work done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING

from edge.kv.rows import Change

if TYPE_CHECKING:
    from edge.kv.disk import Disk

__all__ = ["expire", "fit_model"]

_AT_A_TIME = 32
"""Blocks deleted in one transaction, before others get their turn."""
_FUTURE_S = 86_400.0
"""A use that is later than this from now was noted by a clock that has been set back."""


def expire(disk: Disk, should_stop: Callable[[], bool] = lambda: False) -> int:
    """End pins, then delete blocks that are too old or beyond the budget of their model.

    Args:
        disk: the store.
        should_stop: as for `scan`.

    Returns:
        The number of deleted blocks.
    """
    now = disk.options.clock()
    n_deleted = 0
    ended = [key for key, until in disk.limits.ends().items() if until <= now]
    if ended:
        with disk.index.write() as change:
            for key in ended:
                change.pin(key, False)
        disk.limits.set_ends((key, None) for key in ended)
    if disk.options.max_age_s is not None:
        n_deleted += _delete_old(disk, now, disk.options.max_age_s, should_stop)
    if disk.options.has_model_budgets:
        n_deleted += _fit_models(disk, should_stop)
    disk.expired_at = disk.options.timer()
    if n_deleted:
        disk.empty_log()  # it still holds the tokens of deleted blocks
    return n_deleted


def fit_model(
    disk: Disk, change: Change, model: bytes, n_bytes: int, stay: Set[bytes], names: Mapping[bytes, str], most: int = 1 << 30
) -> bool:
    """Evict blocks of a model until `n_bytes` more fit its budget. Only inside `Index.write`.

    All variants of a model, by KV type or engine, share what its name may take.

    Args:
        disk: the store.
        change: of its index.
        model: fingerprint.
        n_bytes: of disk, about to be written.
        stay: keys that are not evicted.
        names: of the models.
        most: blocks to evict.

    Returns:
        True if they fit, or, with 0 bytes, if nothing more can be evicted.
    """
    name = names.get(model)
    budget = disk.options.model_budgets.get(name or "", disk.options.model_budget_bytes)
    if budget is None:
        return True
    models = [model] if name is None else [key for key, known in names.items() if known == name]
    over = change.disk_of(models) + n_bytes - budget
    while over > 0 and n_bytes <= budget and most > 0:
        victim = change.next_victim(stay, models)
        if victim is None:
            return not n_bytes
        most -= 1
        disk.remove(change, victim[0])
        disk.n_evicted += 1
        over -= victim[1]
    return over <= 0


def _delete_old(disk: Disk, now: float, max_age_s: float, should_stop: Callable[[], bool]) -> int:
    with disk.index.write() as change:
        change.sql.execute("UPDATE block SET last_used = ?1 WHERE last_used > ?1 + ?2", (now, _FUTURE_S))
    oldest, n_deleted = now - max_age_s, 0
    while not should_stop():
        with disk.index.write() as change:
            stay = change.leased(disk.files.is_live)
            sql = "SELECT key FROM block WHERE children = 0 AND pinned = 0 AND last_used < ? ORDER BY rank LIMIT ?"
            leaves = [key for (key,) in change.sql.execute(sql, (oldest, _AT_A_TIME + len(stay))) if key not in stay]
            n = 0
            for key in leaves:
                n += _delete_upwards(disk, change, key, oldest, stay, _AT_A_TIME - n)
        n_deleted += n
        if not n:
            break
    return n_deleted


def _delete_upwards(disk: Disk, change: Change, key: bytes, oldest: float, stay: Set[bytes], most: int) -> int:
    """Delete a leaf, and the blocks before it that become leaves and are as old."""
    sql = "SELECT parent FROM block WHERE key = ? AND children = 0 AND pinned = 0 AND last_used < ?"
    n = 0
    while n < most and key not in stay and (row := change.sql.execute(sql, (key, oldest)).fetchone()) is not None:
        disk.remove(change, key)
        key, n = row[0], n + 1
    return n


def _fit_models(disk: Disk, should_stop: Callable[[], bool]) -> int:
    """Evict what exceeds the budget of its model, for example since that was made smaller."""
    names: Mapping[bytes, str] = disk.limits.names()
    before = disk.n_evicted
    with disk.index.read() as view:
        models = [model for (model,) in view.sql.execute("SELECT DISTINCT model FROM space")]
    for model in models:
        is_done = False
        while not is_done and not should_stop():
            with disk.index.write() as change:
                is_done = fit_model(disk, change, model, 0, change.leased(disk.files.is_live), names, _AT_A_TIME)
    return disk.n_evicted - before
