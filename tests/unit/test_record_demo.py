"""The recorded demo: a cast becomes the same pictures each time, and nothing on the screen is lost on the way."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

pytest.importorskip("pyte", reason="needs the extra [dev]")
ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_demo", ROOT / "tools" / "record_demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_cast_is_drawn_with_every_letter_and_colour(demo: ModuleType, tmp_path: Path) -> None:
    events = [
        (0.0, "\x1b[38;2;1;2;3mplain <&>\x1b[0m"),
        (0.5, "\r\n\x1b[1;48;2;9;8;7mbold\x1b[0m \x1b[3mslanted\x1b[0m \x1b[7mturned\x1b[0m"),
        (9.0, "\x1b[2J\x1b[Hthe end"),
    ]
    demo.write_cast(tmp_path / "a.cast", demo.without_pauses(events))
    lines = (tmp_path / "a.cast").read_text("utf-8").splitlines()
    assert json.loads(lines[0])["version"] == 2
    assert [json.loads(line)[0] for line in lines[1:]] == [0.0, 0.5, 0.5 + demo.LONGEST_PAUSE_S]
    frames = demo.frames_of(demo.without_pauses(events))
    assert len(frames) == 3
    demo.write_svg(tmp_path / "a.svg", frames)
    text = (tmp_path / "a.svg").read_text("utf-8")
    tree = ElementTree.fromstring(text)
    shown = [element.text for element in tree.iter(f"{SVG}text")]
    assert shown == ["plain <&>", "bold", "slanted", "turned", "the end"], "a row that stays is drawn once"
    assert 'fill="#010203"' in text and 'fill="#090807"' in text
    assert re.search(r'font-weight="700"[^>]*>bold', text) and re.search(r'font-style="italic"[^>]*>slanted', text)
    uses = [use.get("href") for use in tree.iter(f"{SVG}use")]
    assert len(uses) == 4 and len(set(uses)) == 3
    assert "<script" not in text


def test_the_demo_of_the_readme_is_the_cast_beside_it(demo: ModuleType, tmp_path: Path) -> None:
    where = ROOT / "docs" / "pictures" / "demo.cast"
    lines = where.read_text("utf-8").splitlines()[1:]
    events = [(float(at), str(text)) for at, _, text in map(json.loads, lines)]
    demo.write_svg(tmp_path / "again.svg", demo.frames_of(events))
    assert (tmp_path / "again.svg").read_bytes() == where.with_suffix(".svg").read_bytes()
    assert "docs/pictures/demo.svg" in (ROOT / "README.md").read_text("utf-8")
