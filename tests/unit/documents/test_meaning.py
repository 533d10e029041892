"""Search by meaning: vectors that follow their passages, whatever interrupts, and their traces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edge.documents import AddProgress, Collection
from edge.embedding import Embedder
from edge.errors import CancelledError, ModelNotFoundError, UsageError
from tests.unit.documents.conftest import ConceptEngine, concept_embedder

TEXTS = {"a.txt": "The automobile is in the garage.", "b.txt": "It is freezing outside.", "c.txt": "A doctor came."}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return folder


def open_one(tmp_path: Path, embedder: Embedder | str | None) -> Collection:
    return Collection.open("test", store=tmp_path / "store", embedder=embedder)


def vectors_of(collection: Collection) -> np.ndarray:
    (file,) = collection.folder.glob("vectors-*.f32")
    return np.fromfile(file, np.float32).reshape(-1, 32)


def test_other_words_of_the_same_meaning_are_found(tmp_path: Path, texts: Path) -> None:
    with open_one(tmp_path, concept_embedder()) as collection:
        report = collection.add(texts)
        assert (report.n_passages, report.n_vectors) == (3, 3)
        assert collection.search("physician", how="words") == []
        for how in ("meaning", "hybrid"):
            best = collection.search("physician", how=how)[0]
            assert (best.document.name, best.similarity is not None and best.similarity > 0.2) == ("c.txt", True)
        both = collection.search("car garage", 3)
        assert both[0].document.name == "a.txt"
        assert 0 < both[0].score <= 1
        assert len(both) == 3


def test_a_heading_is_part_of_the_meaning(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Car\n\n" + "words " * 120 + "\n\n## Doctor\n\n" + "words " * 120 + "\n")
    with open_one(tmp_path, concept_embedder()) as collection:
        collection.add(tmp_path / "a.md")
        assert collection.search("physician", how="meaning")[0].heading == "Car > Doctor"


def test_a_common_word_is_found_while_there_are_no_vectors_yet(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(f"The automobile {number} is in the garage.")
    with open_one(tmp_path, concept_embedder()) as collection:
        with pytest.raises(CancelledError):
            collection.add([tmp_path / f"{number}.txt" for number in range(8)], lambda progress: progress.phase != "embed")
        assert collection.info.n_vectors == 0
        assert len(collection.search("automobile", 8)) == 8


def test_vectors_that_are_missing_are_computed_later(tmp_path: Path, texts: Path) -> None:
    def stop(progress: AddProgress) -> bool:
        return progress.phase != "embed"

    with open_one(tmp_path, concept_embedder()) as collection:
        with pytest.raises(CancelledError):
            collection.add(texts, stop)
        assert (collection.info.n_passages, collection.info.n_vectors) == (3, 0)
        assert collection.search("garage")[0].similarity is None
        assert collection.update().n_vectors == 3


def test_only_changed_passages_are_computed(tmp_path: Path, texts: Path) -> None:
    engine = ConceptEngine()
    with open_one(tmp_path, Embedder(engine, "concepts")) as collection:
        collection.add(texts)
        (texts / "b.txt").write_text("It is warm, says the physician.")
        assert collection.update().n_vectors == 3
        assert engine.n_computed == 4
        assert {hit.document.name for hit in collection.search("doctor", 2, "meaning")} == {"b.txt", "c.txt"}


def test_vectors_of_what_was_removed_are_overwritten(tmp_path: Path, texts: Path) -> None:
    with open_one(tmp_path, concept_embedder()) as collection:
        collection.add(texts)
        before = vectors_of(collection)
        collection.remove(texts / "b.txt")
        after = vectors_of(collection)
        assert (before.any(axis=1).sum(), after.any(axis=1).sum()) == (3, 2)
        assert len(collection.search("icy", how="meaning")) == 2
        (texts / "a.txt").write_text("A bicycle.")
        collection.update()
        assert not (vectors_of(collection) == before[0]).all(axis=1).any()


def test_another_model_computes_all_vectors_again(tmp_path: Path, texts: Path) -> None:
    with open_one(tmp_path, concept_embedder()) as collection:
        collection.add(texts)
    with open_one(tmp_path, concept_embedder("others", 16)) as collection:
        with pytest.raises(UsageError, match="of concepts, and the question would be of others"):
            collection.search("doctor")
        assert collection.search("doctor", how="words")
        assert collection.update().n_vectors == 3
        assert collection.search("physician", how="meaning")[0].document.name == "c.txt"
        assert collection.info.model == "others"
        collection.update()
        assert [file.stat().st_size for file in collection.folder.glob("vectors-*.f32")] == [3 * 16 * 4]


def test_what_is_removed_while_its_vector_is_computed_leaves_none(tmp_path: Path, texts: Path) -> None:
    class Removing(ConceptEngine):
        def compute(self, batch: Sequence[Sequence[int]]) -> np.ndarray:
            collection.remove(texts / "b.txt")
            return super().compute(batch)

    with open_one(tmp_path, Embedder(Removing(), "concepts")) as collection:
        report = collection.add(texts)
        assert (report.n_passages, report.n_vectors, len(vectors_of(collection))) == (2, 2, 2)
        assert {hit.document.name for hit in collection.search("doctor", how="meaning")} == {"a.txt", "c.txt"}


def test_removing_most_of_a_collection_gives_space_back(tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge import database
    from edge.documents import meaning

    monkeypatch.setattr(meaning, "_MOST_DEAD", 2)
    monkeypatch.setattr(database, "_SHRUNK_BYTES", 1 << 16)
    (tmp_path / "many").mkdir()
    for number in range(30):
        (tmp_path / f"many/{number}.txt").write_text(f"Number {number} is about nothing. " * 300)
    with open_one(tmp_path, concept_embedder()) as collection, open_one(tmp_path, concept_embedder()) as other:
        collection.add([tmp_path / "many", texts])
        best = other.search("physician", 3, "meaning")
        before = collection.info
        collection.remove(tmp_path / "many")
        after = collection.info
        assert (before.n_vectors > 30, after.n_vectors) == (True, 3)
        assert after.size_bytes < before.size_bytes / 2
        assert sorted(len(np.fromfile(file, np.float32)) // 32 for file in collection.folder.glob("*.f32"))[0] == 3
        for one in (collection, other):
            hits = one.search("physician", 3, "meaning")
            assert {hit.document.name for hit in hits} == set(TEXTS)
            assert hits[0] == best[0]
        (texts / "d.txt").write_text("An icy wind.")
        collection.update()
        assert len(list(collection.folder.glob("*.f32"))) == 1
        assert {hit.document.name for hit in other.search("freezing", 2, "meaning")} == {"b.txt", "d.txt"}


def test_a_lost_file_of_vectors_is_made_again(tmp_path: Path, texts: Path) -> None:
    with open_one(tmp_path, concept_embedder()) as collection:
        collection.add(texts)
        for file in collection.folder.glob("vectors-*"):
            file.unlink()
    with open_one(tmp_path, concept_embedder()) as collection:
        assert collection.update().n_vectors == 3
        assert collection.search("physician", how="meaning")[0].document.name == "c.txt"


def test_a_collection_of_words_stays_one(tmp_path: Path, texts: Path) -> None:
    asked: list[str | None] = []

    def load(name: str | None) -> Embedder | None:
        asked.append(name)
        return concept_embedder(name or "default")

    with open_one(tmp_path, "") as collection:
        collection.add(texts)
        assert collection.info.is_words_only
    with Collection.open("test", store=tmp_path / "store", embedder=load) as collection:
        collection.update()
        assert (collection.search("doctor")[0].similarity, asked) == (None, [])
    with Collection.open("test", store=tmp_path / "store", embedder=load, model="chosen") as collection:
        assert collection.update().n_vectors == 3
    with Collection.open("test", store=tmp_path / "store", embedder=load) as collection:
        assert collection.search("physician")
        assert (collection.info.is_words_only, asked) == (False, ["chosen", "chosen"])


def test_a_model_is_loaded_only_when_it_is_needed(tmp_path: Path, texts: Path) -> None:
    asked: list[str | None] = []

    def load(name: str | None) -> Embedder | None:
        asked.append(name)
        return concept_embedder()

    with Collection.open("test", store=tmp_path / "store", embedder=load) as collection:
        collection.add(texts)
    with Collection.open("test", store=tmp_path / "store", embedder=load) as collection:
        collection.update()
        collection.search("doctor", how="words")
        assert asked == [None]


def test_a_model_that_was_named_has_to_be_here(tmp_path: Path, texts: Path) -> None:
    with open_one(tmp_path, str(tmp_path / "nothing.gguf")) as collection, pytest.raises(ModelNotFoundError):
        collection.add(texts)
