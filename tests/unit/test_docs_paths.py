"""ARCHITECTURE.md names only paths that exist."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PATH = re.compile(r"[\w.{},*/-]+/|(?:[\w.{},*-]+/)+[\w.{},*-]+|[\w{},*-]+\.(?:py|md|toml|txt|sh)")
MADE = {"build/site", "build/site/index.html", "edge/_models"}  # by `make docs`, and in the wheel


def expand(text: str) -> list[str]:
    """Expand the brace lists of a shell pattern: a/{b,c}.py is a/b.py and a/c.py."""
    parts = [part.split(",") if place % 2 else [part] for place, part in enumerate(re.split(r"{([^{}]*)}", text))]
    return ["".join(choice) for choice in itertools.product(*parts)]


def named_paths() -> list[str]:
    """Return every path in backticks: with a slash, or a file name with a suffix; brace lists expanded."""
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL))
    words = [word for span in spans for word in span.split() if PATH.fullmatch(word)]
    return sorted({path for word in words for path in expand(word)} - MADE)


def test_the_page_names_many_paths() -> None:
    assert len(named_paths()) > 30


@pytest.mark.parametrize("path", named_paths())
def test_a_path_in_architecture_exists(path: str) -> None:
    if "*" in path:
        assert any(ROOT.glob(path)), f"ARCHITECTURE.md: {path} matches nothing"
    else:
        assert (ROOT / path).exists(), f"ARCHITECTURE.md: {path} does not exist"
        assert not path.endswith("/") or (ROOT / path).is_dir()


def test_the_links_of_architecture_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE)
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_brace_lists_are_expanded() -> None:
    assert expand("edge/{config,device}/__init__.py") == ["edge/config/__init__.py", "edge/device/__init__.py"]
    assert expand("a/{b,c}/{d,e}.py") == ["a/b/d.py", "a/b/e.py", "a/c/d.py", "a/c/e.py"]
    assert expand("plain.py") == ["plain.py"]
