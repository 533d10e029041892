"""The command line called in this process, with a model that is a fake."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from edge_cli.app import App
from edge_cli.main import run


@dataclass(frozen=True)
class Result:
    """Result of a command."""

    code: int
    out: str
    err: str


Call = Callable[..., Result]


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self, data: bytes = b"") -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", newline="")

    def isatty(self) -> bool:
        return True

    def written(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode()


@pytest.fixture
def terminal() -> type[Terminal]:
    return Terminal


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `edge ARGS`: stdin is a terminal unless bytes are given; stdout and stderr are pipes."""

    def call_edge(*arguments: str, stdin: bytes | None = None, app: App | None = None) -> Result:
        stream = Terminal() if stdin is None else io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stream)
        capsys.readouterr()
        code = run(arguments, app)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call_edge


@pytest.fixture
def fake_app() -> Callable[..., App]:
    """An App whose models are fake backends; what it was asked to load with is kept in `loads`."""

    def make(loads: list[dict[str, Any]] | None = None, **backend_options: Any) -> App:
        def load(*, settings: Any, store: Any, on_progress: Any, trace: Any = None) -> Any:
            from edge.assistant import Assistant
            from edge.backends.fake import FakeBackend

            if loads is not None:
                loads.append({"settings": settings, "store": store})
            on_progress("loading", 0.5)
            backend = FakeBackend(**backend_options)
            return Assistant(backend, store=store, sampling=settings.sampling, window=settings.window, trace=trace)

        return App(load=load)

    return make
