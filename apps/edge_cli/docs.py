"""`edge docs`: add documents, keep them up to date, search them, and open what was found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge.units import plural, quoted
from edge_cli import docs_listing as listing
from edge_cli import output, signals
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_collection, complete_file, complete_model
from edge_cli.docs_ask import ask
from edge_cli.docs_warm import warm
from edge_cli.group import SuggestingGroup, examples
from edge_cli.options import json_option, require_exclusive
from edge_cli.progress import DocumentProgress, PullProgress

if TYPE_CHECKING:
    from edge.config import Settings
    from edge.documents import AddReport, Collection, Document, Passage
    from edge.embedding import Embedder

__all__ = ["docs"]

Function = TypeVar("Function", bound=Callable[..., Any])


@click.group(cls=SuggestingGroup)
def docs() -> None:
    """Add documents, and search them by words and by meaning.

    Text, Markdown, source code, HTML, PDF and Word files become passages of a collection on this device, private to you. A
    search finds passages with their place in the file.
    """


docs.add_command(ask)
docs.add_command(warm)


def _collection_option(function: Function) -> Function:
    return click.option(
        "-c", "--collection", metavar="NAME", default="docs", shell_complete=complete_collection, help="Collection [docs]."
    )(function)


def _model_options(function: Function) -> Function:
    model = click.option(
        "-m",
        "--model",
        metavar="MODEL",
        shell_complete=complete_model,
        help="Embedding model of the collection; another one computes all vectors again. Default: all-minilm-l6-v2.",
    )
    words = click.option("--words", is_flag=True, help="Compute no vectors: passages are found by their words only.")
    return model(words(function))


@docs.command(
    epilog=examples(
        "edge docs add notes/ manual.pdf",
        "edge docs add ~/src/project -c project",
        "edge docs add --words /usr/share/doc",
        "edge docs add notes/ --json | jq '.skipped[]'",
    )
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", shell_complete=complete_file)
@_collection_option
@_model_options
@json_option
@pass_app
def add(app: App, paths: tuple[str, ...], collection: str, as_json: bool, **options: Any) -> int:
    """Read files, and those below folders, into a collection.

    Hidden files and folders such as node_modules are left out; links to folders are not followed. A file that cannot be read
    is skipped with its reason, and the rest goes on. The same command later reads only what changed, and so does edge docs
    update for all paths that were added.

    The default embedding model is fetched when it is first needed (84 MB) and reads English. After Ctrl-C or a kill the same
    command goes on where it was.
    """
    return _run(app, collection, options, as_json, lambda found, report: found.add(paths, report))


@docs.command(epilog=examples("edge docs update", "edge docs update -c project --json", "edge docs update -m ./bge-small.gguf"))
@_collection_option
@_model_options
@json_option
@pass_app
def update(app: App, collection: str, as_json: bool, **options: Any) -> int:
    """Read what changed since, and remove documents whose files are gone.

    A folder that is missing as a whole, such as a disk that is not mounted, keeps its documents.
    """
    return _run(app, _existing(app, collection), options, as_json, lambda found, report: found.update(report))


@docs.command(epilog=examples("edge docs watch", "edge docs watch -c project --interval 1"))
@_collection_option
@click.option("--interval", type=click.FloatRange(0.1, 86_400), default=5.0, metavar="SECONDS", help="Time between looks [5].")
@pass_app
def watch(app: App, collection: str, interval: float) -> int:
    """Keep a collection as its files are, until Ctrl-C."""
    from edge.documents import watch as watch_collection
    from edge.documents.base import shown_path

    settings = app.settings()
    with _Loader(app, settings) as loader, _open(settings, _existing(app, collection), loader.load) as found:
        listed = ", ".join(shown_path(path) for path in found.info.sources) or "nothing: edge docs add PATH"
        output.note(f"Watching {listed}")
        try:
            watch_collection(found, interval_s=interval, on_change=listing.show_report)
        except KeyboardInterrupt:
            return signals.exit_code()
    return 0


@docs.command(epilog=examples("edge docs ls", "edge docs ls -c project", "edge docs ls --collections --json"))
@click.option("-c", "--collection", metavar="NAME", shell_complete=complete_collection, help="This collection only.")
@click.option("--collections", "only_collections", is_flag=True, help="List the collections, without their documents.")
@json_option
@pass_app
def ls(app: App, collection: str | None, only_collections: bool, as_json: bool) -> None:
    """List the collections and their documents."""
    from edge.documents.collection import collection_names

    settings = app.settings()
    names = [_existing(app, collection)] if collection else collection_names(settings.paths.documents_dir)
    if not names and not as_json:
        output.note("There are no documents yet. Add some: edge docs add PATH")
        return
    infos, listed = [], []
    for name in names:
        with _open(settings, name, "") as found:
            infos.append(found.info)
            listed.append([] if only_collections else found.documents())
    if as_json:
        rows = [
            listing.info_json(info)
            | ({} if only_collections else {"documents": [listing.document_json(one, info.name) for one in below]})
            for info, below in zip(infos, listed, strict=True)
        ]
        output.json_object(rows)
        return
    output.table([listing.info_row(info) for info in infos], listing.INFO_HEADINGS)
    for info, below in zip(infos, listed, strict=True):
        if below:
            output.line()
            output.line(f"{info.name}:")
            output.table([listing.document_row(one) for one in below], listing.DOCUMENT_HEADINGS, indent="  ")


@docs.command(
    epilog=examples(
        "edge docs search how do I replace the gasket",
        "edge docs search --how words E1234",
        "edge docs search -n 3 -c project 'where is the cache opened?' --json",
    )
)
@click.argument("words", nargs=-1, required=True, metavar="WORD...")
@_collection_option
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=8, metavar="N", help="Show at most N passages [8].")
@click.option(
    "--how",
    type=click.Choice(["hybrid", "words", "meaning"]),
    default="hybrid",
    help="By the words, by the meaning, or the ranks of both in one [hybrid].",
)
@json_option
@pass_app
def search(app: App, words: tuple[str, ...], collection: str, limit: int, how: Any, as_json: bool) -> int:
    """Find the passages that answer a question best, best first.

    Nothing in the question is syntax. The exit code is 1 if nothing is found.
    """
    query, settings = " ".join(words), app.settings()
    with _Loader(app, settings, download=False) as loader, _open(settings, _existing(app, collection), loader.load) as found:
        hits = found.search(query, limit, how)
    if as_json:
        output.json_object([listing.passage_json(hit) for hit in hits])
    else:
        listing.show_passages(hits)
    if not hits:
        output.note(f"Nothing found for: {query}")
    return 0 if hits else 1


@docs.command(
    epilog=examples(
        "edge docs show guide.md:12-18",
        "edge docs show 'manual.pdf, page 4'",
        "edge docs show notes/guide.md --json",
        "edge docs show guide.md:12 --open",
    )
)
@click.argument("citation")
@_collection_option
@click.option("--open", "is_opened", is_flag=True, help="Open the file there: in $VISUAL or $EDITOR, else as the desktop does.")
@json_option
@pass_app
def show(app: App, citation: str, collection: str, is_opened: bool, as_json: bool) -> int:
    """Show the passages at a citation, such as guide.md:12-18.

    The name may be a path, or the end of one. Without a place all passages of the document are shown.
    """
    from edge.documents.base import shown_path
    from edge.documents.places import find_place

    settings = app.settings()
    with _open(settings, _existing(app, collection), "") as found:
        document, passages = find_place(found, citation)
    if is_opened:
        return _open_file(document, passages)
    if as_json:
        output.json_object([listing.passage_json(passage) for passage in passages])
        return 0
    listing.show_passages(passages)
    try:
        has_changed = document.path.stat().st_mtime_ns / 1e9 != document.modified
    except OSError:
        has_changed = True
    if has_changed:
        output.note(f"{shown_path(document.path)} has changed since it was read, or is gone: edge docs update")
    return 0


@docs.command(
    epilog=examples("edge docs rm notes/old.md", "edge docs rm ~/src/project -c project", "edge docs rm --all -c project --yes")
)
@click.argument("paths", nargs=-1, metavar="[PATH]...", shell_complete=complete_file)
@_collection_option
@click.option("--all", "everything", is_flag=True, help="Delete the whole collection.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before deleting a collection.")
@json_option
@pass_app
def rm(app: App, paths: tuple[str, ...], collection: str, everything: bool, yes: bool, as_json: bool) -> int:
    """Remove documents, or a whole collection: their text and vectors are overwritten. The files themselves stay.

    A folder stands for all documents below it. edge docs update does not read these paths again, unless they are below a folder
    that was added and is still there.
    """
    require_exclusive(("PATH", paths), ("--all", everything))
    if not paths and not everything:
        raise click.UsageError("Name files or folders, or give --all.", click.get_current_context())
    with _open(app.settings(), _existing(app, collection), "") as found:
        if everything:
            n_gone = found.info.n_documents
            if n_gone and not yes and not _is_agreed(collection, n_gone):
                output.note("Nothing was deleted.")
                return 1
            found.delete()
            missing: list[str] = []
        else:
            missing = [path for path in paths if not found.holds(path)]
            n_gone = found.remove(*paths)
    if n_gone:
        _forget_warmed(app, collection)
    if as_json:
        output.json_object({"removed": n_gone, "missing": missing})
    else:
        output.note(f"{plural(n_gone, 'document')} removed from {collection}.")
        for path in missing:
            output.note(f"  no document of {collection} is at {path}")
    return 1 if missing and not n_gone else 0


def _forget_warmed(app: App, collection: str) -> None:
    """Delete what edge docs warm stored for a collection: it has the text of its documents."""
    from edge.grounding.warming import release

    settings = app.settings()
    if settings.kv.enabled and settings.paths.kv_dir.is_dir():
        with app.blocks(settings) as blocks:
            release(blocks, collection, forgets=True)


class _Loader:
    """Loads the embedding model of a collection, and closes it; without one that can be fetched words have to do."""

    def __init__(self, app: App, settings: Settings, *, is_named: bool = False, download: bool = True) -> None:
        self._app, self._settings, self._is_named, self._download = app, settings, is_named, download
        self._embedder: Embedder | None = None

    def load(self, name: str | None) -> Embedder | None:
        """See `edge.documents.base.LoadEmbedder`."""
        from edge.errors import DownloadError, ModelNotFoundError

        try:
            with PullProgress() as progress:
                self._embedder = self._app.embedder(
                    name, settings=self._settings, download=self._download, on_progress=progress.report
                )
        except (DownloadError, ModelNotFoundError) as error:
            if self._is_named:
                raise
            output.note(f"{error.message} So passages are found by their words only; edge docs update tries again.")
        return self._embedder

    def __enter__(self) -> _Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._embedder is not None:
            self._embedder.close()


def _open(settings: Settings, name: str, embedder: Any, model: str | None = None) -> Collection:
    from edge.documents import Collection

    return Collection.open(name, store=settings.paths.documents_dir, embedder=embedder, model=model)


def _existing(app: App, name: str) -> str:
    """Return the name of a collection that is there; raise a UsageError if it is not."""
    from edge.documents.collection import existing_name

    return existing_name(name, app.settings().paths.documents_dir)


def _run(app: App, name: str, options: dict[str, Any], as_json: bool, work: Callable[[Collection, Any], AddReport]) -> int:
    require_exclusive(("--model", options["model"]), ("--words", options["words"]))
    settings = app.settings()
    model = "" if options["words"] else options["model"]
    with _Loader(app, settings, is_named=bool(model)) as loader, _open(settings, name, loader.load, model) as found:
        try:
            with DocumentProgress() as progress:
                report = work(found, progress.report)
        except KeyboardInterrupt:
            output.note(f"Interrupted: {plural(found.info.n_documents, 'document')} are there. The same command goes on.")
            return signals.exit_code()
    if as_json:
        output.json_object(listing.report_json(report))
    else:
        listing.show_report(report)
    return 1 if report.skipped and not (report.added or report.unchanged or report.removed) else 0


def _is_agreed(name: str, n_documents: int) -> bool:
    from edge.errors import UsageError

    if not (output.is_terminal(sys.stdin) and output.is_terminal(sys.stderr)):
        raise UsageError(
            f"{plural(n_documents, 'document')} would be removed, and there is no terminal to ask on.",
            f"edge docs rm --all -c {quoted(name)} --yes",
        )
    return click.confirm(f"Delete the collection {name} with {plural(n_documents, 'document')}?", default=False, err=True)


def _open_file(document: Document, passages: list[Passage]) -> int:
    """Open a file at its first passage.

    Raises:
        UsageError: the file is gone, or the editor cannot be started.
    """
    from edge.documents.base import shown_path
    from edge.errors import UsageError
    from edge_chat.editor import editor_at, editor_command

    shown = shown_path(document.path)
    if not document.path.is_file():
        raise UsageError(
            f"There is no file {shown} any more.", "edge docs show shows the passage; edge docs update forgets it."
        )
    line = passages[0].lines[0] if passages[0].lines else None
    if line is not None and (os.environ.get("VISUAL") or os.environ.get("EDITOR")):
        command = editor_at(editor_command(os.environ), str(document.path), line)
        try:
            return subprocess.run(command, check=False).returncode
        except OSError as error:
            hint = "Set $VISUAL or $EDITOR to an editor that is installed."
            raise UsageError(f"The editor {command[0]!r} cannot be started ({error.strerror}).", hint) from None
    page = f" at page {passages[0].page}" if passages[0].page else ""
    output.note(f"Opening {shown}{page}")
    return click.launch(str(document.path))
