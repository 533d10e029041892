"""tools/install_torch.py: the small build of torch wherever there is one."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "tools/install_torch.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_torch", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.sys, "argv", ["install_torch.py", str(SCRIPT.parents[1] / "constraints.txt")])
    monkeypatch.setattr(module, "is_installed", lambda wanted: False)
    return module


def test_the_lock_pins_torch(tool: ModuleType) -> None:
    assert tool.pinned("numpy==2\ntorch==2.13.0 ; x\n") == "2.13.0"
    assert tool.pinned((SCRIPT.parents[1] / "constraints.txt").read_text()).count(".") == 2
    with pytest.raises(SystemExit):
        tool.pinned("torchvision==1.0\n")


@pytest.mark.parametrize(
    ("system", "offered", "reachable", "from_index"),
    [
        ("Darwin", "2.13.0", True, []),
        ("Linux", "2.13.0+cpu", True, []),
        ("Linux", "2.13.0", True, [True, False]),
        ("Linux", "", False, [True, False]),
    ],
)
def test_which_index_is_asked(
    system: str, offered: str, reachable: bool, from_index: list[bool], tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []

    def pip(*arguments: str) -> int:
        calls.append(tool.CPU_INDEX in arguments)
        assert any(argument.startswith("torch==") for argument in arguments)
        return 0 if reachable or not calls[-1] else 1

    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(tool, "offered", lambda wanted: offered)
    monkeypatch.setattr(tool, "pip", pip)
    assert tool.main() == 0
    assert calls == (from_index or [False])


def test_nothing_is_done_where_it_is_installed(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "is_installed", lambda wanted: True)
    monkeypatch.setattr(tool, "pip", lambda *arguments: pytest.fail("pip was run"))
    assert tool.main() == 0
