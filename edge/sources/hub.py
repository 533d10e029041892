"""hf:owner/repo[:file, quantisation or folder][@revision]: models on the Hugging Face Hub.

A reference without a revision means the newest commit at the time of the pull; `pull` again looks for a newer one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edge.errors import ChecksumError, ModelFileError, ModelNotFoundError
from edge.files import open_file
from edge.formats.artifact import is_gguf
from edge.hashes import is_sha256
from edge.sources.base import Found, Source
from edge.sources.hub_client import COMMIT, HubClient, parse_reference
from edge.sources.hub_folder import FOLDERS, fetch_folder
from edge.sources.hub_select import matching, select
from edge.sources.network import hub_cache

if TYPE_CHECKING:
    from edge.sources.base import Context
    from edge.sources.hub_client import Listed, Reference
    from edge.sources.store import Record

__all__ = ["HubSource"]


class HubSource(Source):
    """Models on the hub. Files that other programs already fetched into the hub's own cache are used in place."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._client = HubClient(context)

    def canonical(self, reference: str) -> str:
        return str(parse_reference(reference))

    def find(self, reference: str) -> Found | None:
        wanted, context = parse_reference(reference), self.context
        here = context.store.records("hf", wanted.owner, wanted.repo)
        records = [(path, record) for path, record in here if wanted.allows(record)]
        for path, record in records:
            if str(wanted) in record.references:
                return context.owned(path, record, reference)
        if wanted.selector:
            # Pulled under another name of the same file, such as its file name instead of its quantisation.
            names = {record.file: (path, record) for path, record in reversed(records)}
            matches = matching(list(names), wanted.selector.strip("/").removesuffix(".mlpackage").replace("/", "--"))
            if len(matches) == 1:
                return context.owned(*names[matches[0]], reference)
        return self._cached_by_hub(wanted, reference)

    def fetch(self, reference: str) -> Found:
        wanted, context, client = parse_reference(reference), self.context, self._client
        listing = client.connect(wanted, "give the path of a file or folder")
        selected = select(list(listing.files), wanted.selector, wanted.repo_id)
        record = client.new_record(wanted, listing, selected.flat_name(wanted.repo), selected.format)
        file = listing.files[selected.name] if selected.format == "gguf" else None
        repo = ("hf", wanted.owner, wanted.repo)
        into = (*repo, listing.commit[:12])
        with context.lock(f"hf/{wanted.repo_id}/{selected.name}"):
            if file is not None:
                context.check_promise(f"{wanted.repo_id}: {file.name}", file.size_bytes, file.sha256)
                record = replace(record, sha256=file.sha256 or "")
            same = context.store.find_same(record, *repo)
            if same is not None:
                return context.owned(*same, reference)
            if file is not None:
                path, record = self._download(wanted, file, into, record)
            else:
                place = selected.name if selected.format == "coreml" else selected.folder
                path, record = fetch_folder(client, wanted, listing, FOLDERS[selected.format], place, into, record)
            self._supersede(wanted, path)
            return context.owned(path, record, reference)

    def installed(self) -> list[Found]:
        return [self.context.owned(path, record, record.references[0]) for path, record in self.context.store.records("hf")]

    def _download(self, wanted: Reference, file: Listed, into: tuple[str, ...], record: Record) -> tuple[Path, Record]:
        context = self.context
        by_catalogue = context.entry.sha256 if context.entry is not None and file.sha256 is None else None
        partial, computed, promised = self._client.fetch_listed(
            wanted,
            record.revision,
            replace(file, sha256=file.sha256 or by_catalogue),
            on_bytes=lambda done, total: context.report(done, total, "download"),
        )
        who = "catalogue" if by_catalogue else "hub"
        return context.store.install(partial, into, replace(record, sha256=computed, promised=who if promised else ""))

    def _supersede(self, wanted: Reference, newest: Path) -> None:
        """Drop the reference's older files; those without another reference are removed."""
        store = self.context.store
        for path, record in store.records("hf", wanted.owner, wanted.repo):
            if path != newest and str(wanted) in record.references:
                if len(record.references) == 1:
                    store.remove(path)
                else:
                    store.drop_reference(path, record, str(wanted))

    def _cached_by_hub(self, wanted: Reference, reference: str) -> Found | None:
        """Return a file that another program fetched into the hub library's own cache. Its blob is named by its SHA-256."""
        folder = hub_cache() / f"models--{wanted.owner}--{wanted.repo}"
        try:
            commit = wanted.revision or "main"
            pointer = folder / "refs" / commit
            if not commit.startswith("/") and pointer.is_file():
                with open_file(pointer) as file:
                    commit = file.read(200).decode("ascii").strip()
            snapshot = folder / "snapshots" / commit
            if not COMMIT.fullmatch(commit) or not snapshot.is_dir():
                return None
            names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if is_gguf(path.name)]
            path = snapshot / select(names, wanted.selector, wanted.repo_id).name
            blob = path.resolve(strict=True)
            size_bytes = blob.stat().st_size
        except (OSError, ValueError, ModelNotFoundError, ModelFileError):
            # Not an error if nothing here fits: the hub is asked next.
            return None
        sha256 = blob.name if is_sha256(blob.name) else None
        try:
            self.context.check_promise(str(path), size_bytes, sha256)
        except ChecksumError:
            return None  # another version than the catalogue's
        return Found(path, reference, size_bytes, f"the hub's cache ({commit[:7]})", "hub cache", sha256)
