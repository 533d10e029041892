"""Collections of a loaded model: opened by name, with what earlier prompts had, and gone when they are gone."""

from __future__ import annotations

from pathlib import Path

import pytest

import edge
from edge.documents import Collection
from edge.errors import UsageError
from edge.grounding.sources import Sources
from tests.unit.grounding.shelf import library

TEXT = "To reset the pump, hold the red button for five seconds.\n\nThe warranty lasts two years.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of collections, with one named "manual"."""
    file = tmp_path / "manual.txt"
    file.write_text(TEXT)
    with Collection.open("manual", store=tmp_path / "documents", embedder="") as collection:
        collection.add(file)
    return tmp_path / "documents"


def test_a_name_opens_the_collection_and_an_object_is_used_as_it_is(folder: Path) -> None:
    sources, own = Sources(folder), library("own")
    found = sources.find(["manual", own, "manual"])
    assert [one.name for one in found] == ["manual", "own"]
    assert found[1] is own
    assert sources.find("manual")[0] is found[0]  # opened once
    assert sources.find(None) == sources.find([]) == ()
    sources.close()
    assert not own.is_closed  # whoever made it closes it


def test_a_name_that_nothing_has_makes_no_collection(folder: Path) -> None:
    with pytest.raises(UsageError, match="There is no collection of documents 'manuel'") as error:
        Sources(folder).find("manuel")
    assert "manual" in error.value.hint
    assert [one.name for one in folder.iterdir()] == ["manual"]


def test_a_collection_that_was_deleted_is_not_found_any_more(folder: Path) -> None:
    sources = Sources(folder)
    sources.find("manual")
    with Collection.open("manual", store=folder, embedder="") as collection:
        collection.delete()
    with pytest.raises(UsageError, match="There is no collection"):
        sources.find("manual")
    with Collection.open("manual", store=folder, embedder="") as again:
        again.add(folder.parent / "manual.txt")
    assert sources.find("manual")[0].search("reset the pump")
    sources.close()


def test_orders_are_in_the_folder_of_the_collection_and_go_with_it(folder: Path) -> None:
    sources = Sources(folder)
    found = sources.find("manual")
    sources.orders(found)["manual"].note(["a"])
    assert (folder / "manual" / "orders.json").is_file()
    sources.close()
    with Collection.open("manual", store=folder, embedder="") as collection:
        collection.delete()
    assert not (folder / "manual").exists()


def test_an_answer_cites_file_and_line(folder: Path) -> None:
    with edge.testing.FakeModel(lambda _: "Hold it [1].").load() as ai, Collection.open("manual", store=folder) as manual:
        reply = ai.generate("How do I reset the pump?", docs=manual)
        reply.wait()
    assert [one.place for one in reply.cited] == ["manual.txt:1-3"]
    assert reply.cited[0].document == str(folder.parent / "manual.txt")
