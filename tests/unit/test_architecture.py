"""The import rules of design.md, checked where they matter: in a fresh interpreter, and by import-linter's contracts."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ["llama_cpp", "numpy", "torch", "transformers", "huggingface_hub", "textual", "jinja2", "fastapi", "sounddevice"]
HEAVY += ["llguidance", "jsonschema_rs"]


def modules_after(code: str) -> set[str]:
    """Top-level modules that are loaded after running some code in a fresh interpreter."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import edge",
        "import edge; edge.Sampling(), edge.errors.EdgeError",
        "import edge.config",
        "import edge.backends.base",
        "import edge_cli.main",
    ],
)
def test_the_light_doors_load_nothing_heavy(code: str) -> None:
    assert not modules_after(code) & set(HEAVY)


def test_the_facade_loads_no_engine_before_a_model() -> None:
    loaded = modules_after("import edge; edge.load; edge.Assistant; edge.ConversationStore")
    assert not loaded & {"llama_cpp", "torch", "transformers", "textual", "huggingface_hub"}


def test_every_public_name_exists() -> None:
    import edge

    for name in edge.__all__:
        assert getattr(edge, name) is not None
    assert set(edge.__all__) <= set(dir(edge))
    with pytest.raises(AttributeError):
        _ = edge.nonsense


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Hold the tree below a folder to the contracts in its pyproject.toml."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    paths = os.pathsep.join(str(root / folder) for folder in (".", "apps", "converters"))
    env = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=300)


def test_import_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("edge/errors.py", "import edge.files", "floors of the runtime"),
        ("edge/kv/keys.py", "def later(): import edge.assistant", "floors of the runtime"),
        ("edge/formats/gguf.py", "import edge.plan.memory", "floors of the runtime"),
        ("edge/kv/keys.py", "import edge.kv.store", "no circles"),
        ("apps/edge_chat/app.py", "import edge_cli.main", "houses"),
    ],
)
def test_a_broken_floor_fails(tmp_path: Path, file: str, line: str, contract: str) -> None:
    for folder in ("edge", "apps", "converters"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / file).open("a", encoding="utf-8") as target:
        target.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    broken = [name for name in done.stdout.splitlines() if name.endswith("BROKEN")]
    assert done.returncode == 1
    assert any(name.startswith(contract) for name in broken), done.stdout


def test_no_module_is_part_of_an_import_circle() -> None:
    """As the contract, down to modules: a package of converters may use two others that use it, a module may not."""
    graph = grimp.build_graph(
        "edge", "edge_cli", "edge_chat", "edge_convert", exclude_type_checking_imports=True, cache_dir=None
    )
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


PACKAGES = sorted({path.parent for top in ("edge", "apps", "converters") for path in (ROOT / top).rglob("__init__.py")})


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_face_has_a_line_for_each_file(package: Path) -> None:
    face = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    for path in package.glob("*.py"):
        if path.name != "__init__.py":
            family = f"{path.stem.partition('_')[0]}_{{"  # logits_{torch,gguf}.py
            assert path.name in face or family in face, f"{package.name}/__init__.py does not name {path.name}"


def test_architecture_names_each_file_at_the_top() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "edge").glob("[!_]*.py") if path.name not in page] == []


def test_errors_carry_their_exit_codes() -> None:
    from edge import errors

    codes = {name: getattr(errors, name).exit_code for name in errors.__all__}
    assert {codes[name] for name in ("UsageError", "ConfigError")} == {2}
    assert (codes["ModelNotFoundError"], codes["BackendUnavailableError"], codes["QualityGateError"]) == (3, 4, 5)
    assert codes["CancelledError"] == 130
    assert set(codes.values()) == {1, 2, 3, 4, 5, 130}
    assert set(errors.__all__) == {name for name in vars(errors) if name.endswith("Error")}
