"""The reference that a user meant with an address of the hub, with capitals, or with a path inside a repository."""

from __future__ import annotations

import re
from urllib.parse import unquote

__all__ = ["REFERENCE", "suggest_reference"]

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?"
REFERENCE = re.compile(rf"hf:({_NAME})/({_NAME})(?::([^:@]+))?(?:@([A-Za-z0-9._/-]+))?")
"""hf:owner/repo[:selector][@revision]."""

_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co")
_PREFIX = re.compile(r"(hf|ollama|pypi):(?!//)", re.IGNORECASE)
_NOT_MODELS = ("api", "collections", "datasets", "docs", "papers", "spaces")


def suggest_reference(text: str, endpoint: str | None = None) -> str | None:
    """Return the reference that a text means which is not one; None if it cannot be told.

    Args:
        text: such as "https://huggingface.co/owner/repo/blob/main/file.gguf", "hf.co/owner/repo:Q4_K_M", "HF:owner/repo" or
            "hf:owner/repo/file.gguf".
        endpoint: of a hub of the user's own.
    """
    text = text.strip()
    prefix = _PREFIX.match(text)
    kind = prefix[1].lower() if prefix else ""
    if kind in ("ollama", "pypi"):
        corrected = f"{kind}:{text[len(kind) + 1 :]}"
        return corrected if corrected != text else None
    place = _without_host(text[3:] if kind else text, endpoint, has_prefix=bool(kind))
    if place is None:
        return None
    place = unquote(re.split(r"[?#]", place)[0])
    place, _, revision = place.partition("@")
    place, _, selector = place.partition(":")
    owner, _, rest = place.strip("/").partition("/")
    repo, _, inside = rest.partition("/")
    if found := re.match(r"(?:blob|resolve|raw|tree)/([^/]+)/?(.*)", inside):
        inside = found[2]
        revision = revision or ("" if found[1] == "main" else found[1])
    selector = selector or inside
    meant = f"hf:{owner}/{repo}" + (f":{selector}" if selector else "") + (f"@{revision}" if revision else "")
    is_model = owner not in _NOT_MODELS and ".." not in meant and meant.isprintable() and REFERENCE.fullmatch(meant)
    return meant if is_model and meant != text else None


def _without_host(text: str, endpoint: str | None, *, has_prefix: bool) -> str | None:
    """Return an address of the hub without its host; a text without one if it came after "hf:"."""
    if text.lower().startswith("hf://"):
        return text[5:]
    if endpoint and text.startswith(endpoint.rstrip("/") + "/"):
        return text[len(endpoint.rstrip("/")) + 1 :]
    scheme, _, rest = text.partition("://") if "://" in text else ("", "", text)
    host, _, place = rest.partition("/")
    if host.lower() in _HOSTS and scheme.lower() in ("", "http", "https"):
        return place
    return text if has_prefix and not scheme else None
