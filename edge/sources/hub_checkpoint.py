"""hf:owner/repo as a checkpoint: its config, tokenizer and safetensors as a folder. For converters; no engine reads one.

models_dir/checkpoints/OWNER/REPO/COMMIT/    the files, each with its record; `.complete` when all are there
"""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from edge.config_file import write_private
from edge.errors import ModelFileError, ModelNotFoundError
from edge.sources.base import Found
from edge.sources.hub import USER_AGENT, HubSource, parse_reference
from edge.sources.store import Record
from edge.sources.transfer import Download, fetch_file

if TYPE_CHECKING:
    from edge.sources.hub import Listed, Listing, Reference

__all__ = ["HubCheckpointSource"]

_FOLDER = "checkpoints"
_WANTED = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template*", "README.md", "model*.safetensors", "model.safetensors.index.json",
)  # fmt: skip
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class HubCheckpointSource(HubSource):
    """Checkpoints on the hub."""

    def find_folder(self, reference: str) -> Found | None:
        """The checkpoint, if it is on the device already and whole. Never uses the network.

        Raises:
            UsageError: the reference is malformed.
        """
        wanted = parse_reference(reference)
        root = self.context.store.root / _FOLDER / wanted.owner / wanted.repo
        whole = [path for path in root.glob("*") if (path / ".complete").is_file()]
        if wanted.revision is not None:
            whole = [path for path in whole if (path / ".complete").read_text().split("\n")[0] == wanted.revision]
        newest = max(whole, key=lambda path: (path / ".complete").stat().st_mtime_ns, default=None)
        if newest is None:
            return None
        licence = (newest / ".complete").read_text().split("\n")[1] or None
        return self._folder(newest, reference, licence)

    def fetch_folder(self, reference: str) -> Found | None:
        """Fetch the checkpoint's files; None where the repository holds none, but perhaps a GGUF.

        Raises:
            UsageError: the reference is malformed.
            ModelNotFoundError: there is no such repository, or edge is offline.
            ModelFileError: its weights are pickle.
            DownloadError: the other side failed; its subclasses say how.
            StorageError: there is no room, or the folder cannot be written.
        """
        wanted = parse_reference(reference)
        if self.context.settings.hub.offline:
            raise ModelNotFoundError(
                f"{wanted} is not on this device, and edge is set not to use the network.",
                "Unset hub.offline (EDGE_HUB_OFFLINE, HF_HUB_OFFLINE), or give the folder of a checkpoint.",
            )
        self.context.report(0, None, "connect")
        listing = self._listing(wanted)
        names = sorted(name for name in listing.files if any(fnmatch.fnmatchcase(name, pattern) for pattern in _WANTED))
        names = [name for name in names if "/" not in name]
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            self._refuse_pickle(wanted, listing)
            return None
        known = [listing.files[name].size_bytes or 0 for name in names]
        total, before = sum(known), 0
        with self.context.store.lock(f"hf-checkpoint/{wanted.repo_id}", on_wait=lambda: self.context.report(0, None, "wait")):
            self.context.store.check_space(total)
            folder = self.context.store.root.joinpath(_FOLDER, wanted.owner, wanted.repo, listing.commit[:12])
            for name, size in zip(names, known, strict=True):
                if not (folder / name).is_file():
                    self._fetch_one(wanted, listing, listing.files[name], before, total)
                before += size
            write_private(folder / ".complete", f"{wanted.revision or ''}\n{listing.licence or ''}\n".encode())
        return self._folder(folder, reference, listing.licence)

    def _refuse_pickle(self, wanted: Reference, listing: Listing) -> None:
        has_gguf = any(name.lower().endswith(".gguf") for name in listing.files)
        pickles = [name for name in listing.files if any(fnmatch.fnmatchcase(name, pattern) for pattern in _PICKLES)]
        if pickles and not has_gguf:
            raise ModelFileError(
                f"hf:{wanted.repo_id} holds its weights as pickle ({sorted(pickles)[0]}), which can run any code when opened.",
                "Look for a safetensors version of this checkpoint.",
            )

    def _fetch_one(self, wanted: Reference, listing: Listing, file: Listed, before: int, total: int) -> None:
        context, page = self.context, f"{self._endpoint}/{wanted.repo_id}"
        token = self._token()
        identity = file.sha256 or f"{self._endpoint}@{listing.commit}"
        partial = context.store.partial("hf", wanted.repo_id, file.name, identity, str(file.size_bytes))
        download = Download(
            url=f"{page}/resolve/{listing.commit}/{quote(file.name)}",
            headers={"User-Agent": USER_AGENT, **({"Authorization": f"Bearer {token}"} if token else {})},
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            label=f"{wanted.repo_id}: {file.name}",
            page=page,
        )
        computed, promised = fetch_file(
            download, partial, context.store, on_bytes=lambda done, _: context.report(before + done, total, "download")
        )
        record = Record(
            references=(str(wanted),),
            file=file.name,
            size_bytes=0,
            mtime_ns=0,
            sha256=computed,
            promised="hub" if promised else "",
            licence=listing.licence,
            origin=page,
            revision=listing.commit,
        )
        context.store.install(partial, (_FOLDER, wanted.owner, wanted.repo, listing.commit[:12]), record)

    def _folder(self, path: Path, reference: str, licence: str | None) -> Found:
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        return Found(path, reference, size, f"{self._endpoint} ({path.name[:7]})", "edge", licence=licence)
