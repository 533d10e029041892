"""hf:owner/repo as a checkpoint or as a LoRA adapter: a folder with safetensors, for converters. No engine reads one.

models_dir/checkpoints/OWNER/REPO/COMMIT/    the files; the record beside it says that all of them are there
models_dir/adapters/OWNER/REPO/COMMIT/       likewise
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.errors import ModelFileError
from edge.sources.hub_client import HubClient, parse_reference
from edge.sources.hub_folder import ADAPTER, CHECKPOINT, FolderKind, fetch_folder, fits

if TYPE_CHECKING:
    from edge.sources.base import Context, Found
    from edge.sources.hub_client import Listing, Reference

__all__ = ["HubAdapterSource", "HubCheckpointSource"]

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class HubCheckpointSource:
    """Checkpoints on the hub.

    Attributes:
        kind: the wanted files.
        what: for messages.
        needed: patterns, each of which a file has to match.
        otherwise: other forms of the same weights; if one of these is there, pickles beside it do not matter.
    """

    kind: FolderKind = CHECKPOINT
    what = "checkpoint"
    needed: tuple[str, ...] = ("config.json", "*.safetensors")
    otherwise: tuple[str, ...] = ("*.gguf", "*genai_config.json", "*.mlpackage/*")

    def __init__(self, context: Context) -> None:
        self._context, self._client = context, HubClient(context)

    def find_folder(self, reference: str) -> Found | None:
        """Return the folder if it is on the device and whole. Never uses the network.

        Raises:
            UsageError: the reference is malformed.
        """
        wanted, context = parse_reference(reference), self._context
        for path, record in context.store.records(self.kind.area, wanted.owner, wanted.repo):
            if wanted.allows(record) and context.store.is_whole(path, record):
                return context.owned(path, record, reference)
        return None

    def find_or_fetch(self, reference: str) -> Found | None:
        """Return the folder, fetched if it is not on the device. Raises as `find_folder` and `fetch_folder`."""
        return self.find_folder(reference) or self.fetch_folder(reference)

    def fetch_folder(self, reference: str) -> Found | None:
        """Fetch the folder's files; None if the repository holds none, but perhaps another form of the model.

        Raises:
            UsageError: the reference is malformed.
            ModelNotFoundError: there is no such repository, or edge is offline.
            ModelFileError: its weights are pickle.
            DownloadError: the server failed; its subclasses say how.
            StorageError: there is no room, or the folder cannot be written.
        """
        wanted, context = parse_reference(reference), self._context
        listing = self._client.connect(wanted, f"give the folder of a {self.what}")
        names = [name for name in listing.files if "/" not in name]
        if not all(any(fits(name, [pattern]) for name in names) for pattern in self.needed):
            self._refuse_pickle(wanted, listing)
            return None
        into = (self.kind.area, wanted.owner, wanted.repo)
        record = self._client.new_record(wanted, listing, listing.commit[:12], self.kind.format)
        with context.lock(f"{self.kind.area}/{wanted.repo_id}"):
            same = context.store.find_same(record, *into)
            return context.owned(*(same or fetch_folder(self._client, wanted, listing, self.kind, "", into, record)), reference)

    def installed(self) -> list[Found]:
        """Return every folder of this kind on the device."""
        found = self._context.store.records(self.kind.area)
        return [self._context.owned(path, record, record.references[0]) for path, record in found if record.files]

    def _refuse_pickle(self, wanted: Reference, listing: Listing) -> None:
        if any(fits(name.lower(), self.otherwise) for name in listing.files):
            return
        pickles = [name for name in listing.files if fits(name, _PICKLES)]
        if pickles:
            raise ModelFileError(
                f"hf:{wanted.repo_id} holds its weights as pickle ({sorted(pickles)[0]}), which can run any code when opened.",
                f"Look for a safetensors version of this {self.what}.",
            )


class HubAdapterSource(HubCheckpointSource):
    """LoRA adapters on the hub."""

    kind = ADAPTER
    what = "adapter"
    needed = ("adapter_config.json", "adapter_model.safetensors")
    otherwise = ()
