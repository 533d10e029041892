"""Commands in hints and notes can be copied into a shell, whatever the names and paths in them."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.units import quoted
from edge_cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
EDGE = "|".join(sorted(COMMANDS))
COMMAND = re.compile(rf"(?:\bedge (?:{EDGE})|: (?:mv|cp|rm|ls|chmod|cd|pip|ollama)|uv pip)\b[^.;:(`\"']*\s$")
SAFE = {
    "edge/catalog/request.py": {"formats[0]", "there[0]"},
    "edge/config/keys.py": {"name"},  # of a section
    "edge/plan/advice.py": {"source", "_as_name(name)", "max(256, plan.n_ctx // 512 * 256)"},  # quoted; letters; a number
    "edge/plan/apply_tuning.py": {"tuning.measured_on"},  # a date in a sentence
    "edge/plan/tuning.py": {"tuning.measured_on", "self.measured_on"},
    "apps/edge_chat/wording.py": {"short_id"},
    "apps/edge_cli/checks.py": {"key"},
    "apps/edge_cli/completion.py": {"shell", "path"},  # of its own table
    "apps/edge_cli/conversations.py": {"age"},
    "apps/edge_cli/convert_names.py": {"model"},  # quoted
    "apps/edge_cli/models_listing.py": {"found.origin"},  # in a sentence
}


def commands() -> Iterator[tuple[str, int, str]]:
    """Yield (file, line, expression) of each value behind the words of a command."""
    for house in ("edge", "apps", "converters"):
        for path in sorted((ROOT / house).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.JoinedStr):
                    continue
                text = ""
                for part in node.values:
                    if isinstance(part, ast.Constant):
                        text += str(part.value)
                    elif isinstance(part, ast.FormattedValue):
                        if COMMAND.search(text):
                            yield str(path.relative_to(ROOT)), part.lineno, ast.unparse(part.value)
                        text += "X"


def test_what_stands_in_a_command_is_quoted() -> None:
    found = list(commands())
    assert len(found) > 20, "the pattern finds commands"
    bare = [one for one in found if not one[2].startswith("quoted(")]
    assert [one for one in bare if one[2] not in SAFE.get(one[0], ())] == []
    used = {(file, value) for file, _, value in bare}
    assert used == {(file, value) for file, values in SAFE.items() for value in values}, "an exception that is none"


@pytest.mark.parametrize("value", [Path("/tmp/my models/a.gguf"), "it's", "smollm2-135m", "hf:a/b", "$(x)", ""])
def test_a_shell_reads_a_quoted_value_as_one_word(value: object) -> None:
    assert shlex.split(f"edge run -m {quoted(value)}") == ["edge", "run", "-m", str(value)]
