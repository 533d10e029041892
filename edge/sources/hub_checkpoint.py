"""hf:owner/repo as a checkpoint or as a LoRA adapter: a folder with safetensors, for converters. No engine reads one.

models_dir/checkpoints/OWNER/REPO/COMMIT/    the files; the record beside it says that all of them are there
models_dir/adapters/OWNER/REPO/COMMIT/       likewise
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from edge.errors import ModelFileError
from edge.sources.base import Found
from edge.sources.hub import HubSource, parse_reference
from edge.sources.hub_folder import ADAPTER, CHECKPOINT, FolderKind, fetch_folder
from edge.sources.store import Record

if TYPE_CHECKING:
    from pathlib import Path

    from edge.sources.hub import Listing, Reference

__all__ = ["HubAdapterSource", "HubCheckpointSource"]

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class HubCheckpointSource(HubSource):
    """Checkpoints on the hub.

    Attributes:
        kind: which files are wanted.
        what: for messages.
        needed: patterns, each of which a file has to fit.
        otherwise: other forms of the same weights; where one of these is there, pickles beside it do not matter.
    """

    kind: FolderKind = CHECKPOINT
    what = "checkpoint"
    needed: tuple[str, ...] = ("config.json", "*.safetensors")
    otherwise: tuple[str, ...] = ("*.gguf", "*genai_config.json", "*.mlpackage/*")

    def find_folder(self, reference: str) -> Found | None:
        """The folder, if it is on the device already and whole. Never uses the network.

        Raises:
            UsageError: the reference is malformed.
        """
        wanted = parse_reference(reference)
        for path, record in self.context.store.records(self.kind.area, wanted.owner, wanted.repo):
            is_meant = (
                wanted.revision is None or str(wanted) in record.references or record.revision.startswith(wanted.revision)
            )
            if is_meant and self.context.store.is_unchanged(path, record):
                return self._folder(path, record, reference)
        return None

    def fetch_folder(self, reference: str) -> Found | None:
        """Fetch the folder's files; None where the repository holds none, but perhaps another form of the model.

        Raises:
            UsageError: the reference is malformed.
            ModelNotFoundError: there is no such repository, or edge is offline.
            ModelFileError: its weights are pickle.
            DownloadError: the other side failed; its subclasses say how.
            StorageError: there is no room, or the folder cannot be written.
        """
        wanted = parse_reference(reference)
        listing = self.connect(wanted, f"give the folder of a {self.what}")
        names = [name for name in listing.files if "/" not in name]
        if not all(any(fnmatch.fnmatchcase(name, pattern) for name in names) for pattern in self.needed):
            self._refuse_pickle(wanted, listing)
            return None
        store = self.context.store
        into = (self.kind.area, wanted.owner, wanted.repo)
        record = self.new_record(wanted, listing, listing.commit[:12], self.kind.format)
        with store.lock(f"{self.kind.area}/{wanted.repo_id}", on_wait=lambda: self.context.report(0, None, "wait")):
            for path, known in store.records(*into):
                if known.revision == record.revision and store.is_unchanged(path, known):
                    return self._folder(path, store.add_reference(path, known, str(wanted)), reference)
            return self._folder(*fetch_folder(self, wanted, listing, self.kind, "", into, record), reference)

    def installed(self) -> list[Found]:
        """Every folder of this kind on the device."""
        found = self.context.store.records(self.kind.area)
        return [self._folder(path, record, record.references[0]) for path, record in found if record.files]

    def _refuse_pickle(self, wanted: Reference, listing: Listing) -> None:
        if any(fnmatch.fnmatchcase(name.lower(), pattern) for name in listing.files for pattern in self.otherwise):
            return
        pickles = [name for name in listing.files if any(fnmatch.fnmatchcase(name, pattern) for pattern in _PICKLES)]
        if pickles:
            raise ModelFileError(
                f"hf:{wanted.repo_id} holds its weights as pickle ({sorted(pickles)[0]}), which can run any code when opened.",
                f"Look for a safetensors version of this {self.what}.",
            )

    def _folder(self, path: Path, record: Record, reference: str) -> Found:
        origin = f"{record.origin} ({record.revision[:7]})"
        return Found(
            path,
            reference,
            record.size_bytes,
            origin,
            "edge",
            licence=record.licence,
            names=record.references,
            files=record.files,
        )


class HubAdapterSource(HubCheckpointSource):
    """LoRA adapters on the hub."""

    kind = ADAPTER
    what = "adapter"
    needed = ("adapter_config.json", "adapter_model.safetensors")
    otherwise = ()
