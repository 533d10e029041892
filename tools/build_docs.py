"""Build the documentation site into build/site, and check it: python tools/build_docs.py"""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import click

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build/docs"
SITE = ROOT / "build/site"
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
}
COMMANDS_PAGE = "reference/commands.md"
WORKER = "https://unpkg.com/iframe-worker/shim"
"""Script that Zensical's pages load to search in a page opened from a file; docs/assets/file-worker.js takes its place."""


def build() -> list[str]:
    """Collect the pages in build/docs, render them to build/site, and check the result.

    Returns:
        One line for each broken link, broken anchor, and request to another host.

    Raises:
        subprocess.CalledProcessError: Zensical has printed what it refused.
    """
    for folder in (PAGES, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for source, target in ROOT_PAGES.items():
        (PAGES / target).write_text(relink((ROOT / source).read_text(encoding="utf-8")), encoding="utf-8")
    (PAGES / "reference").mkdir()
    (PAGES / COMMANDS_PAGE).write_text(commands_page(), encoding="utf-8")
    shown: dict[str, str] = {}
    for name in reference_modules():
        (PAGES / f"reference/{name}.md").write_text(module_page(name, shown), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT, check=True)
    (SITE / "404.html").unlink()  # only right at the root of a host
    for page in SITE.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if WORKER in text:
            above = "../" * (len(page.relative_to(SITE).parts) - 1)
            page.write_text(text.replace(WORKER, f"{above}assets/file-worker.js"), encoding="utf-8")
    return list(find_problems(SITE))


def relink(text: str) -> str:
    """Point the links of a page in the root to where their targets are on the site."""
    text = text.replace("](docs/", "](")
    for source, target in ROOT_PAGES.items():
        text = text.replace(f"]({source}", f"]({target}")
    return text


# -- the reference


def reference_modules() -> list[str]:
    """Return the modules that the navigation names, in its order."""
    navigation = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    pages = re.findall(r'"(reference/[\w.]+\.md)"', navigation)
    return [page.removeprefix("reference/").removesuffix(".md") for page in pages if page != COMMANDS_PAGE]


def module_page(name: str, shown: dict[str, str]) -> str:
    """Return the page of a module: its docstring and every public name.

    Args:
        name: of the module.
        shown: full path of an object -> page that shows it. Names shown before become links; the others are added.
    """
    module = importlib.import_module(name)
    parts, links = [], []
    for public in module.__all__:
        value = getattr(module, public)
        if public.startswith("__"):
            continue
        if inspect.ismodule(value):
            links.append(f"[`{public}`]({value.__name__}.md)")
            continue
        path = defining_path(module, public, value)
        if path in shown:
            links.append(f"[`{public}`]({shown[path]}.md#{path})")
            continue
        shown[path] = name
        options = [f"heading: {public}", f"toc_label: {public}"]
        if inherited := inherited_members(value, module):
            options.append(f"inherited_members: {inherited}")
        parts.append("\n      ".join([f"::: {path}\n    options:", *options]))
    head = [f"# {name}", prose(inspect.getdoc(module) or "")]
    if links:
        head.append("On other pages: " + ", ".join(links))
    return "\n\n".join(head + parts) + "\n"


def inherited_members(value: Any, module: ModuleType) -> list[str]:
    """Return the public members that a class has from bases which are parts of it: not public themselves."""
    if not inspect.isclass(value):
        return []
    bases = [base for base in value.__mro__[1:] if base.__module__.startswith("edge") and base.__name__ not in module.__all__]
    return sorted({name for base in bases for name in vars(base) if not name.startswith("_")} - vars(value).keys())


def defining_path(module: ModuleType, name: str, value: Any) -> str:
    """Return the full path of a public name where it is defined, whatever module re-exports it."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    package = module.__name__.partition(".")[0]
    homes = [module, *(other for key, other in sys.modules.items() if key.startswith(f"{package}."))]
    for home in homes:
        if vars(home).get(name) is value and re.search(rf"^{name}\b.*=", inspect.getsource(home), re.MULTILINE):
            return f"{home.__name__}.{name}"
    raise LookupError(f"{module.__name__}.{name} is defined nowhere")


def prose(docstring: str) -> str:
    """Return a module's docstring for readers: indented paragraphs as code, and without the list of the room's files."""
    paragraphs = [text for text in docstring.split("\n\n") if not re.match(r"\w+\.py\b", text)]
    return "\n\n".join(_as_code(text) if re.search(r"^\s", text, re.MULTILINE) else text for text in paragraphs)


def _as_code(text: str) -> str:
    try:
        compile(textwrap.dedent(text), "", "exec")
        language = "python"
    except SyntaxError:
        language = "text"
    return f"```{language}\n{text}\n```"


def commands_page() -> str:
    """Return the help of every command of `edge`."""
    from edge_cli.main import cli

    parts = ["# Help of every command", "What `edge COMMAND --help` prints."]
    for path, text in _helps(cli, click.Context(cli, info_name="edge", terminal_width=80)):
        parts.append(f"## {path}\n\n```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def _helps(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _helps(inner, click.Context(inner, parent=context, info_name=name, terminal_width=80))


# -- the check


class _Page(HTMLParser):
    """The links, loaded files and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self._is_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attributes}
        self.anchors.update(values[key] for key in ("id", "name") if key in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values.get("href", ""))
        elif tag in ("script", "img", "iframe", "source", "video", "audio", "object", "embed", "image", "use"):
            self.loads += [values[key] for key in ("src", "href", "xlink:href", "data") if values.get(key)]
        self.loads += re.findall(r"url\(['\"]?([^'\")]+)", values.get("style", ""))
        self._is_style = tag == "style"

    def handle_data(self, data: str) -> None:
        if self._is_style:
            self.loads += re.findall(r"url\(['\"]?([^'\")]+)", data)


def find_problems(site: Path) -> Iterator[str]:
    """Yield a line for each link or anchor without target, and for whatever a page or style sheet loads from another host."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        where = path.relative_to(site)
        for target in page.links + page.loads:
            url = urlsplit(target)
            if url.scheme in ("data", "mailto") or (url.scheme and target in page.links):
                continue
            if url.scheme or url.netloc:
                yield f"{where}: loads {target}"
                continue
            file = path if not url.path else (path.parent / unquote(url.path)).resolve()
            if file.is_dir():
                file = file / "index.html"
            if not file.is_file():
                yield f"{where}: {target} does not exist"
            elif url.fragment and file in pages and unquote(url.fragment) not in pages[file].anchors | {"__top"}:
                yield f"{where}: {target} has no such anchor"
    for path in sorted(site.rglob("*.css")):
        for target in re.findall(r"(?:url\(|@import )['\"]?((?:https?:)?//[^'\")]+)", path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: loads {target}"


def main() -> int:
    """Build, print what is wrong, and return the exit code."""
    if sys.version_info < (3, 11):
        sys.exit("The documentation site needs Python 3.11 or newer, because Zensical and mkdocstrings do.")
    problems = build()
    print(*problems, sep="\n", file=sys.stderr)
    if not problems:
        print(f"Open {SITE / 'index.html'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
