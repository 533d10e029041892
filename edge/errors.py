"""Every error that edge raises, in one tree.

    EdgeError                       exit code 1
    ├── UsageError                  2   the request itself is wrong
    │   ├── ConfigError             2   a setting is unknown or has a bad value
    │   └── ConstraintError         2   a schema, regular expression or grammar cannot be honoured
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
    │   ├── BusyError               1   too many requests wait already
    │   └── UnsupportedError        1   this backend cannot do that (see Capabilities)
    ├── SoundError                  1   no microphone or loudspeaker, or it is gone
    ├── RemoteError                 1   a server that was to answer failed, refused or went away
    ├── InvalidReplyError           1   a reply is not the value that was asked for
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
    "BusyError",
    "CancelledError",
    "ChecksumError",
    "ConfigError",
    "ConstraintError",
    "ContextFullError",
    "DownloadError",
    "EdgeError",
    "InvalidReplyError",
    "ModelError",
    "ModelFileError",
    "ModelNotFoundError",
    "ModelTooLargeError",
    "QualityGateError",
    "RemoteError",
    "SoundError",
    "StorageError",
    "TemplateError",
    "UnsupportedError",
    "UsageError",
]


BUILD_HINT = "make install in a checkout; otherwise see docs/install.md"
"""Hint for an engine that must be built for this machine."""


def kind_of(value: object) -> str:
    """Return type and value of something that is wrong, for an error."""
    return f"{type(value).__name__} ({str(value)[:40]!r})"


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


class ConstraintError(UsageError):
    """A schema, regular expression or grammar is wrong, too large, or beyond what can be enforced token by token."""


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


class BusyError(BackendError):
    """Too many requests wait for the model already; a later one may be taken."""


class UnsupportedError(BackendError):
    """The backend cannot do this; its Capabilities say so."""


class SoundError(EdgeError):
    """There is no microphone or loudspeaker, it cannot be used, or it is gone."""


class RemoteError(EdgeError):
    """A server that was to answer in place of a model failed, refused, sent nonsense or went away."""


class InvalidReplyError(EdgeError):
    """A reply was cut off before it was complete, or its text is not a value of the type that was asked for.

    Args:
        message, hint: as in EdgeError.
        text: of the reply.
    """

    def __init__(self, message: str, hint: str = "", *, text: str = "") -> None:
        super().__init__(message, hint)
        self.text = text


class ContextFullError(EdgeError):
    """The prompt does not fit into the context window.

    Args:
        message, hint: as in EdgeError.
        needed: tokens of a window that it would fit into; 0 if that is not known.
        n_prompt: tokens of the prompt; 0 if that is not known.
        n_ctx: tokens of the context window; 0 if that is not known.
        is_least: n_prompt is a lower bound, since a far too long text is not tokenised.
    """

    def __init__(
        self, message: str, hint: str = "", *, needed: int = 0, n_prompt: int = 0, n_ctx: int = 0, is_least: bool = False
    ) -> None:
        super().__init__(message, hint)
        self.needed, self.n_prompt, self.n_ctx, self.is_least = needed, n_prompt, n_ctx, is_least

    def reworded(self, message: str, hint: str) -> ContextFullError:
        """Return the error with the same numbers in other words."""
        return ContextFullError(
            message, hint, needed=self.needed, n_prompt=self.n_prompt, n_ctx=self.n_ctx, is_least=self.is_least
        )


class QualityGateError(EdgeError):
    """A converted model is worse than the gate allows."""

    exit_code = 5


class CancelledError(EdgeError):
    """The user stopped it."""

    exit_code = 130
