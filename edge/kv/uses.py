"""Pins and users of blocks beside the index: a small log from which a rebuilt index gets them back.

One line each, appended in the transaction that changes the index, with a keyed checksum:

    new KEY N OWNER     the block KEY and the N - 1 before it were stored by OWNER; what older lines say of them does not count
    use KEY N OWNER     OWNER uses them too
    forget - 0 OWNER    uses by OWNER in older lines do not count
    pin KEY 1 -         the block is not evicted; "unpin" ends that

Like the index it may be lost or damaged: lines whose checksum is wrong are skipped, and a block that no line names belongs to
the first owner, which its file names. The log is rewritten, a line for each branch of a conversation, once it has grown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from edge.kv.files import StoreFiles
from edge.kv.rows import Use, View

__all__ = ["Uses", "current_uses", "pins_of"]

_MAX_BYTES = 64 << 20
"""A log beyond that is not ours; it is rewritten."""
_SPARE_BYTES = 1 << 20
_KINDS = ("new", "use", "forget", "pin", "unpin")
_AT_A_TIME = 1 << 14


class LogContent(NamedTuple):
    """The valid lines of a log in order, and whether it has only those."""

    uses: list[Use]
    is_whole: bool


class Uses:
    """The log of a store. Only inside `Index.write`, and by one process at a time for that reason.

    Args:
        files: of the store.
    """

    def __init__(self, files: StoreFiles) -> None:
        self._files = files
        self.path = files.directory / f"uses{files.suffix}"
        self._usual_bytes = 0  # after it was last rewritten

    @property
    def is_grown(self) -> bool:
        """It has grown far beyond what it was when it was last rewritten, or is missing."""
        size = self._size()
        return size is None or size > 2 * self._usual_bytes + _SPARE_BYTES

    def append(self, uses: Iterable[Use]) -> None:
        """Append lines. A power cut may lose the newest ones, except of pins."""
        merged = _merged(uses)
        data = b"".join(self._line(use) for use in merged)
        if data:
            self._files.append(self.path, data, sync=any("pin" in use.kind for use in merged))

    def read(self) -> LogContent:
        """Return the content of the log; nothing, and not whole, if there is none."""
        size = self._size()
        if size is None or size > _MAX_BYTES:
            return LogContent([], is_whole=False)
        found, is_whole = [], True
        for line in self._files.lines(self.path):
            use = self._parsed(line)
            if use is not None:
                found.append(use)
            is_whole = is_whole and line.endswith(b"\n") and (use is not None or line == b"\n")
        return LogContent(found, is_whole)

    def rewrite(self, uses: Iterable[Use]) -> Path:
        """Write a log to a temporary path, for `put_in_place`."""
        return self._files.write(self._line(use) for use in uses)

    def put_in_place(self, draft: Path, since: int) -> None:
        """Replace the log by one from `rewrite`, and what was appended meanwhile.

        Args:
            draft: from `rewrite`.
            since: size of the log when its content was looked up.
        """
        try:
            size = self._size() or 0
            if since < size:
                self._files.append(draft, self._files.tail(self.path, since))
            self._usual_bytes = draft.stat().st_size
            draft.replace(self.path)
        finally:
            self._files.discard(draft)

    def size(self) -> int:
        """Return its size in bytes."""
        return self._size() or 0

    def clear(self) -> None:
        """Empty it."""
        self.path.unlink(missing_ok=True)
        self._files.append(self.path, b"\n")

    def _size(self) -> int | None:
        try:
            return self.path.lstat().st_size
        except FileNotFoundError:
            return None

    def _line(self, use: Use) -> bytes:
        text = f"{use.kind} {use.key.hex() or '-'} {use.n} {use.owner.encode('utf-8').hex() or '-'}".encode("ascii")
        return text + b" " + self._files.keys.checksum(text) + b"\n"

    def _parsed(self, line: bytes) -> Use | None:
        text, _, checksum = line.strip().rpartition(b" ")
        if not text or checksum != self._files.keys.checksum(text):
            return None
        kind, key, n, owner = text.decode("ascii").split(" ")
        if kind not in _KINDS:
            return None
        return Use(kind, bytes.fromhex(key.strip("-")), bytes.fromhex(owner.strip("-")).decode("utf-8"), int(n))


def pins_of(uses: Iterable[Use]) -> set[bytes]:
    """Return the keys that are pinned after these lines."""
    pinned: set[bytes] = set()
    for use in uses:
        if use.kind == "pin":
            pinned.add(use.key)
        elif use.kind in ("unpin", "new"):  # a damaged block is dropped with its pin; "new" names the last of a run
            pinned.discard(use.key)
    return pinned


def current_uses(view: View) -> Iterator[Use]:
    """Yield what a log of this index holds: for each owner its branches, for nobody the other blocks, and pins."""
    owner, parents = "", dict[bytes, bytes]()
    sql = "SELECT name, key, parent FROM owner JOIN block ON block.id = owner.block ORDER BY name"
    for name, key, parent in view.sql.execute(sql):
        if name != owner:
            yield from _branches(owner, parents)
            owner, parents = name, {}
        parents[key] = parent
    yield from _branches(owner, parents)
    sql = "SELECT key, parent FROM block WHERE NOT EXISTS (SELECT 1 FROM owner WHERE owner.block = block.id) ORDER BY id"
    cursor = view.sql.execute(sql)
    while rows := cursor.fetchmany(_AT_A_TIME):
        yield from _branches("", dict(rows))
    for (key,) in view.sql.execute("SELECT key FROM block WHERE pinned"):
        yield Use("pin", key, "")


def _branches(owner: str, parents: dict[bytes, bytes]) -> Iterator[Use]:
    """Yield the uses of an owner: from each last block back to one that is not its own or was named already."""
    above = set(parents.values())
    left = dict(parents)
    for key in parents:
        n, at = 0, key
        while key not in above and at in left:
            at = left.pop(at)
            n += 1
        if n:
            yield Use("use", key, owner, n)
    for key in left:  # only where damage made parents a ring
        yield Use("use", key, owner)


def _merged(uses: Iterable[Use]) -> list[Use]:
    """Merge uses of blocks that follow each other."""
    found: list[Use] = []
    for use in uses:
        last = found[-1] if found else None
        if last is not None and use.parent and last[:3] == (use.kind, use.parent, use.owner):
            found[-1] = use._replace(n=last.n + use.n)
        else:
            found.append(use)
    return found
