"""Every error that edge raises, in one tree.

    EdgeError                       exit code 1
    ├── UsageError                  2   the request itself is wrong
    │   └── ConfigError             2   a setting is unknown or has a bad value
    ├── ModelError                  1
    │   ├── ModelNotFoundError      3   no such model here or there
    │   ├── ModelFileError          1   truncated, corrupt, not a model, unknown architecture
    │   ├── ModelTooLargeError      1   does not fit in this device's memory
    │   └── TemplateError           1   the model's chat template cannot be used
    ├── DownloadError               1   the server failed, lied or went away
    │   ├── AccessDeniedError       1   401 or 403: a token or a licence is missing
    │   └── ChecksumError           1   size or hash differ from what was promised
    ├── StorageError                1   disk full, read-only, locked, not ours
    ├── BackendError                1   the engine failed
    │   ├── BackendUnavailableError 4   the required accelerator or engine is not on this device
    │   └── UnsupportedError        1   this backend cannot do that (see Capabilities)
    ├── ContextFullError            1   the prompt does not fit into the context window
    ├── QualityGateError            5   a converted model is worse than allowed
    └── CancelledError              130 stopped by the user

An error has three parts: what happened and what it means (`message`), and what to do next (`hint`).
Only the command line and the chat app print errors; everything below them raises.
"""

from __future__ import annotations

__all__ = [
    "AccessDeniedError",
    "BackendError",
    "BackendUnavailableError",
    "CancelledError",
    "ChecksumError",
    "ConfigError",
    "ContextFullError",
    "DownloadError",
    "EdgeError",
    "ModelError",
    "ModelFileError",
    "ModelNotFoundError",
    "ModelTooLargeError",
    "QualityGateError",
    "StorageError",
    "TemplateError",
    "UnsupportedError",
    "UsageError",
]


BUILD_HINT = "make install in a checkout; otherwise see docs/install.md"
"""Hint for an engine that must be built for this machine."""


class EdgeError(Exception):
    """Base of every error of this package.

    Args:
        message: what happened and what it means, in one or two sentences.
        hint: what to do next; a command where there is one.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class UsageError(EdgeError, ValueError):
    """The request itself is wrong: an argument out of range, two that exclude each other."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is unknown or has a value that cannot be used."""


class ModelError(EdgeError):
    """Something is wrong with a model."""


class ModelNotFoundError(ModelError):
    """No model of that name, here or where it should be fetched from."""

    exit_code = 3


class ModelFileError(ModelError):
    """The file is truncated, corrupt, not a model, or of an architecture that this build does not know."""


class ModelTooLargeError(ModelError):
    """The model, with the context asked for, does not fit in the memory of this device."""


class TemplateError(ModelError):
    """The model's chat template is missing, malformed or refused these messages."""


class DownloadError(EdgeError):
    """A download failed: the server answered with an error, lied, or went away."""


class AccessDeniedError(DownloadError):
    """The server wants a token, or the model's licence must be accepted (HTTP 401, 403)."""


class ChecksumError(DownloadError):
    """Size or hash of a download differ from what was promised."""


class StorageError(EdgeError):
    """The disk is full, read-only or locked, or a file there is not one of ours."""


class BackendError(EdgeError):
    """The engine that runs the model failed."""


class BackendUnavailableError(BackendError):
    """The required backend or accelerator is not on this device."""

    exit_code = 4


class UnsupportedError(BackendError):
    """The backend cannot do this; its Capabilities say so."""


class ContextFullError(EdgeError):
    """The prompt does not fit into the context window.

    Args:
        message, hint: as in EdgeError.
        needed: tokens of a window that it would fit into; 0 if that is not known.
    """

    def __init__(self, message: str, hint: str = "", *, needed: int = 0) -> None:
        super().__init__(message, hint)
        self.needed = needed


class QualityGateError(EdgeError):
    """A converted model is worse than the gate allows."""

    exit_code = 5


class CancelledError(EdgeError):
    """The user stopped it."""

    exit_code = 130
