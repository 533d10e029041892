"""hf:owner/repo[:file or quantisation][@revision]: models on the Hugging Face Hub, or on a server that speaks its protocol.

The hub's listing of a revision gives every file's size and, for large files, its SHA-256; both are held against what arrives.
A reference without a revision means what was newest when it was pulled; `pull` again looks for something newer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from msgspec.structs import replace

from edge.errors import ChecksumError, DownloadError, ModelFileError, ModelNotFoundError, UsageError
from edge.sources.base import Found, Source, safe_name
from edge.sources.store import Record
from edge.sources.transfer import Download, RetryLaterError, fetch_file, refusal, retry, transport_errors

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["USER_AGENT", "HubSource", "Listed", "Listing", "Reference", "parse_reference", "select"]

DEFAULT_ENDPOINT = "https://huggingface.co"
USER_AGENT = "edge-assistant"

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_REFERENCE = re.compile(rf"hf:({_NAME})/({_NAME})(?::([^:@]+))?(?:@([A-Za-z0-9._/-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_QUANTISATION = re.compile(r"(?:^|[-_.])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|BF16|F16|F32|FP16|MXFP4\w*))\.gguf$", re.IGNORECASE)
_INFO_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Reference:
    owner: str
    repo: str
    selector: str | None
    revision: str | None

    @property
    def repo_id(self) -> str:
        return f"{self.owner}/{self.repo}"

    def __str__(self) -> str:
        selector = f":{self.selector}" if self.selector else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo_id}{selector}{revision}"


@dataclass(frozen=True)
class Listed:
    """One file by the hub's listing; what the listing leaves out is None."""

    name: str
    size_bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    commit: str
    files: dict[str, Listed]
    licence: str | None


class HubSource(Source):
    """Models on the hub. Files that other programs already fetched into the hub's own cache are used in place."""

    def canonical(self, reference: str) -> str:
        return str(parse_reference(reference))

    def find(self, reference: str) -> Found | None:
        wanted = parse_reference(reference)
        records = [
            (path, record)
            for path, record in self.context.store.records("hf", wanted.owner, wanted.repo)
            if wanted.revision is None or record.revision.startswith(wanted.revision) or str(wanted) in record.references
        ]
        for path, record in records:
            if str(wanted) in record.references:
                return self._owned(path, record, reference)
        if wanted.selector:
            # Pulled under another name of the same file, such as its file name instead of its quantisation.
            names = {record.file: (path, record) for path, record in reversed(records)}
            matches = _matching(list(names), wanted.selector.replace("/", "--"))
            if len(matches) == 1:
                path, record = names[matches[0]]
                return self._owned(path, record, reference)
        return self._cached_by_hub(wanted, reference)

    def fetch(self, reference: str) -> Found:
        wanted = parse_reference(reference)
        if self.context.settings.hub.offline:
            raise ModelNotFoundError(
                f"{wanted} is not on this device, and edge is set not to use the network.",
                "Unset hub.offline (EDGE_HUB_OFFLINE, HF_HUB_OFFLINE), or give the path of a file.",
            )
        self.context.report(0, None, "connect")
        listing = self._listing(wanted)
        name = select(list(listing.files), wanted.selector, wanted.repo_id)
        file = listing.files[name]
        self.context.check_promise(f"{wanted.repo_id}: {name}", file.size_bytes, file.sha256)
        record = Record(
            references=(str(wanted),),
            file=safe_name(name),
            size_bytes=0,
            mtime_ns=0,
            sha256=file.sha256 or "",
            licence=listing.licence,
            origin=f"{self._endpoint}/{wanted.repo_id}",
            revision=listing.commit,
        )
        with self.context.store.lock(f"hf/{wanted.repo_id}/{name}", on_wait=lambda: self.context.report(0, None, "wait")):
            return self._installed_already(record, reference) or self._download(wanted, file, record)

    def installed(self) -> list[Found]:
        return [self._owned(path, record, record.references[0]) for path, record in self.context.store.records("hf")]

    # -- one file

    def _installed_already(self, record: Record, reference: str) -> Found | None:
        """The same file of the same commit, pulled by another reference or by a process that this one waited for."""
        store = self.context.store
        owner, repo = parse_reference(record.references[0]).repo_id.split("/")
        for path, known in store.records("hf", owner, repo):
            is_same = known.file == record.file and (known.revision == record.revision or known.sha256 == record.sha256)
            if is_same and store.is_unchanged(path, known):
                return self._owned(path, store.add_reference(path, known, record.references[0]), reference)
        return None

    def _download(self, wanted: Reference, file: Listed, record: Record) -> Found:
        name, sha256, context = file.name, file.sha256, self.context
        url = f"{self._endpoint}/{wanted.repo_id}/resolve/{record.revision}/{quote(name)}"
        token = self._token()
        identity = sha256 or f"{self._endpoint}@{record.revision}"
        partial = context.store.partial("hf", wanted.repo_id, name, identity, str(file.size_bytes))
        download = Download(
            url=url,
            headers={"User-Agent": USER_AGENT, **({"Authorization": f"Bearer {token}"} if token else {})},
            size_bytes=file.size_bytes,
            sha256=sha256 or (context.entry.sha256 if context.entry else None),
            label=f"{wanted.repo_id}: {name}",
            page=f"{self._endpoint}/{wanted.repo_id}",
        )
        computed, promised = fetch_file(
            download, partial, context.store, on_bytes=lambda done, total: context.report(done, total, "download")
        )
        who = "hub" if sha256 or context.entry is None or context.entry.sha256 is None else "catalogue"
        record = replace(record, sha256=computed, promised=who if promised else "")
        path = context.store.install(partial, ("hf", wanted.owner, wanted.repo, record.revision[:12]), record)
        self._supersede(wanted, path)
        return self._owned(path, record, str(wanted), is_new=True)

    def _supersede(self, wanted: Reference, newest: Path) -> None:
        """Let go of what this reference led to before; a file that nothing else refers to is removed."""
        store = self.context.store
        for path, record in store.records("hf", wanted.owner, wanted.repo):
            if path != newest and str(wanted) in record.references:
                if len(record.references) == 1:
                    store.remove(path)
                else:
                    store.drop_reference(path, record, str(wanted))

    def _owned(self, path: Path, record: Record, reference: str, *, is_new: bool = False) -> Found:
        return Found(
            path=path,
            reference=reference,
            size_bytes=path.stat().st_size,
            origin=f"{record.origin} ({record.revision[:7]})",
            owner="edge",
            sha256=record.sha256 or None,
            verified=is_new or self.context.store.is_unchanged(path, record),
            licence=record.licence,
            names=record.references,
        )

    # -- the hub

    @property
    def _endpoint(self) -> str:
        return (self.context.settings.hub.endpoint or DEFAULT_ENDPOINT).rstrip("/")

    def _token(self) -> str | None:
        """HF_TOKEN, or what `hf auth login` saved, unless the user told the hub's library not to send it unasked."""
        from huggingface_hub import constants, get_token

        return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()

    def _listing(self, wanted: Reference) -> Listing:
        """Commit, files, sizes and hashes of one revision."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        page = f"{self._endpoint}/{wanted.repo_id}"
        api = HfApi(endpoint=self._endpoint, token=self._token() or False, library_name=USER_AGENT)
        found: list[Listing] = []

        def ask() -> None:
            try:
                info = api.model_info(wanted.repo_id, revision=wanted.revision, files_metadata=True, timeout=_INFO_TIMEOUT_S)
                found.append(_read_listing(info))
            except HfHubHTTPError as error:
                raise refusal(error.response.status_code, error.response.headers, str(wanted), page) from error
            except OfflineModeIsEnabled as error:
                raise DownloadError(f"{wanted}: HF_HUB_OFFLINE is set.", "Unset it to use the network.") from error
            except transport_errors() as error:
                unreachable = DownloadError(
                    f"{self._endpoint} cannot be reached: {error}.",
                    "Check the network, and hub.endpoint (HF_ENDPOINT) if you set it.",
                )
                raise RetryLaterError(unreachable) from error
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DownloadError(
                    f"{self._endpoint} does not answer as a model hub does ({type(error).__name__}).",
                    "Check hub.endpoint (HF_ENDPOINT).",
                ) from error

        retry(ask)
        return found[0]

    def _cached_by_hub(self, wanted: Reference, reference: str) -> Found | None:
        """A file that another program fetched into the hub library's own cache. Its blob is named by its SHA-256."""
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE) / f"models--{wanted.owner}--{wanted.repo}"
        try:
            commit = wanted.revision or "main"
            pointer = folder / "refs" / commit
            if not commit.startswith("/") and pointer.is_file():
                commit = pointer.read_text(encoding="ascii").strip()
            snapshot = folder / "snapshots" / commit
            if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
                return None
            names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*.gguf")]
            name = select(names, wanted.selector, wanted.repo_id)
            path = snapshot / name
            blob = path.resolve(strict=True)
            size_bytes = blob.stat().st_size
        except (OSError, ValueError, ModelNotFoundError, ModelFileError):
            # Nothing here that fits: not an error, since the hub is asked next.
            return None
        sha256 = blob.name if re.fullmatch(r"[0-9a-f]{64}", blob.name) else None
        try:
            self.context.check_promise(str(path), size_bytes, sha256)
        except ChecksumError:
            return None  # another version than the catalogue's
        return Found(path, reference, size_bytes, f"the hub's cache ({commit[:7]})", "hub cache", sha256)


def select(names: list[str], selector: str | None, repo_id: str) -> str:
    """Which file of a repository is meant.

    Args:
        names: all files of the repository.
        selector: a file name, a quantisation such as "Q4_K_M", or None where there is only one to choose.
        repo_id: for messages.

    Raises:
        UsageError: several files fit; they are listed.
        ModelNotFoundError: none fits, or the repository has no GGUF file.
        ModelFileError: what fits is a model split into several files.
    """
    models = [name for name in names if name.lower().endswith(".gguf") and not _is_side_file(name)]
    if not models:
        if any(name.endswith((".safetensors", ".bin", ".pth")) for name in names):
            raise ModelNotFoundError(
                f"hf:{repo_id} holds a checkpoint and no GGUF file.",
                f"Convert it with: edge convert hf:{repo_id}, or look for a repository whose name ends in -GGUF.",
            )
        raise ModelNotFoundError(f"hf:{repo_id} holds no GGUF file.", "Look for a repository whose name ends in -GGUF.")
    whole = [name for name in models if not _SPLIT.search(name)]
    matches = _matching(models, selector) if selector else whole
    if len(matches) == 1 and not _SPLIT.search(matches[0]):
        return matches[0]
    parts = [name for name in matches if _SPLIT.search(name)]
    if parts or (not whole and not selector):
        count = int(_SPLIT.search((parts or models)[0])[1])  # type: ignore[index]
        raise ModelFileError(
            f"hf:{repo_id}: {(parts or models)[0]} is split into {count} files, which edge does not load.",
            f"{_offer(repo_id, whole)} Or join the parts with `llama-gguf-split --merge` and give the path.",
        )
    if matches:
        raise UsageError(f"hf:{repo_id} holds {len(matches)} files that fit.", _offer(repo_id, matches))
    raise ModelNotFoundError(f"hf:{repo_id} holds no file {selector!r}.", _offer(repo_id, whole))


def _matching(names: list[str], selector: str) -> list[str]:
    """Files that a selector names: exactly, but for case, or by their quantisation."""
    for fits in (
        lambda name: name == selector,
        lambda name: name.lower() == selector.lower(),
        lambda name: _quantisation(name) == selector.upper(),
        # A split model, or a folder that carries the quantisation.
        lambda name: selector.upper() in re.split(r"[-/.]", name.upper()),
    ):
        matches = [name for name in names if fits(name)]
        if matches:
            return sorted(matches)
    return []


def _quantisation(name: str) -> str | None:
    found = _QUANTISATION.search(name)
    return found[1].upper() if found else None


def _is_side_file(name: str) -> bool:
    """A part of a model that is no model: the eyes of a vision model, an importance matrix, an adapter."""
    base = name.rpartition("/")[2].lower()
    return base.startswith("mmproj") or "-mmproj" in base or "imatrix" in base


def _offer(repo_id: str, names: list[str]) -> str:
    """A hint that lists what can be asked for."""
    if not names:
        return "Choose another repository."
    choices = [_quantisation(name) or name for name in names]
    if len(set(choices)) < len(choices):
        choices = names
    listed = ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")
    return f"Name one, as in hf:{repo_id}:{choices[0]}. There are: {listed}."


def _read_listing(info: ModelInfo) -> Listing:
    """What the hub answered, held against what it can be: huggingface_hub passes on whatever JSON there was.

    Raises:
        ValueError, TypeError, AttributeError: this is no listing of a model hub.
    """
    commit = info.sha
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise ValueError("no commit")
    files = {}
    for sibling in info.siblings or []:
        name: Any = sibling.rfilename  # the annotations promise types that nobody checked
        size: Any = sibling.lfs.size if sibling.lfs else sibling.size
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        is_whole = isinstance(name, str) and (size is None or (type(size) is int and size >= 0))
        if not is_whole or (sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256)):
            raise ValueError("a file without a proper name, size or hash")
        files[name] = Listed(name, size, sha256)
    # By the repository's card; "license:..." among its tags says the same where there is no card.
    card = info.card_data
    licence = (card.get("license_name") or card.get("license")) if card else None
    if not isinstance(licence, str):
        licence = next((tag[8:] for tag in info.tags or [] if str(tag).startswith("license:")), None)
    is_showable = licence is not None and licence.isprintable() and len(licence) <= 100
    return Listing(commit, files, licence if is_showable else None)


def parse_reference(reference: str) -> Reference:
    found = _REFERENCE.fullmatch(reference)
    if not found or ".." in reference:
        raise UsageError(
            f"{reference!r} is no reference to the hub.",
            "Write hf:owner/repo, hf:owner/repo:Q4_K_M or hf:owner/repo:file.gguf, and @revision behind it if you like.",
        )
    owner, repo, selector, revision = found.groups()
    return Reference(owner, repo, selector, revision)
