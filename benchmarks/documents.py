"""Collections of documents by size: search by words, by meaning and by both, one changed file, and what they take on the disk.

    python benchmarks/documents.py --passages 1000 100000
    python benchmarks/documents.py --passages 1000000 --store /a/disk/with/8/GB

Passages are made of 20,000 words by Zipf's law, 120 words each, and their vectors of 2,000 topics with noise, so no embedding
model is needed: it takes hundreds of times longer than all that is measured here. Questions have five rare words and the three
most common ones. The files are in the page cache.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.documents import Collection, db, vectors
from edge.documents.chunks import Chunk
from edge.embedding.base import EmbeddingEngine, EmbeddingInfo
from edge.embedding.embedder import Embedder

N_DIMS = 384
N_TOPICS = 2000
N_WORDS = 20_000
PASSAGE_WORDS = 120
PER_DOCUMENT = 100
N_QUERIES = 20


class Topics(EmbeddingEngine):
    """The vector of a text is that of the topic its first word has the number of."""

    def __init__(self) -> None:
        self.info = EmbeddingInfo(n_dims=N_DIMS, n_ctx=256, n_vocab=1 << 16, pooling="mean")
        self.max_batch_tokens, self.max_batch_texts = 1 << 20, 1024
        self.topics = np.random.default_rng(0).normal(size=(N_TOPICS, N_DIMS)).astype(np.float32)

    def tokenize(self, text: str) -> list[int]:
        return [int(hashlib.sha256(word.encode()).hexdigest()[:4], 16) for word in text.split()[:200]]

    def truncate(self, tokens: Sequence[int]) -> list[int]:
        return list(tokens[: self.info.n_ctx])

    def compute(self, batch: Sequence[Sequence[int]]) -> Any:
        noise = np.random.default_rng(len(batch) + batch[0][0])
        rows = self.topics[[row[0] % N_TOPICS for row in batch]]
        return rows + 0.7 * noise.normal(size=rows.shape).astype(np.float32)

    def close(self) -> None: ...


def make_passages(rng: np.random.Generator, n_passages: int) -> list[str]:
    numbers = np.minimum(rng.zipf(1.3, size=(n_passages, PASSAGE_WORDS)), N_WORDS)
    return [" ".join(f"w{number}" for number in row) for row in numbers]


def fill(collection: Collection, engine: Topics, n_passages: int) -> None:
    """Store passages and vectors as adding files does, without reading files."""
    rng = np.random.default_rng(1)
    database, meaning = collection._db, collection._meaning
    meaning._begin(Embedder(engine, "topics"))
    for first in range(0, n_passages, PER_DOCUMENT * 100):
        n_now = min(PER_DOCUMENT * 100, n_passages - first)
        texts = make_passages(rng, n_now)
        with database.write() as connection:
            for start in range(0, n_now, PER_DOCUMENT):
                chunks = [Chunk(text, "", 1, 1, 0) for text in texts[start : start + PER_DOCUMENT]]
                path = Path(f"/documents/{first + start}.txt")
                db.put_document(connection, path, path.name, "text", 1, 1, b"", chunks)
            ids = [row[0] for row in connection.execute("SELECT id FROM chunk WHERE slot IS NULL ORDER BY id")]
        rows = engine.topics[rng.integers(N_TOPICS, size=n_now)]
        rows = rows + 0.7 * rng.normal(size=rows.shape).astype(np.float32)
        meaning._store(ids, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
        print(f"\r  filled {first + n_now:,}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return (time.perf_counter() - began) * 1e3


def measure(store: Path, n_passages: int) -> dict[str, float]:
    """Return milliseconds and bytes for each row of the table."""
    name = f"n{n_passages}"
    shutil.rmtree(store / name, ignore_errors=True)
    engine = Topics()
    embedder = Embedder(engine, "topics")
    found: dict[str, float] = {}
    with Collection.open(name, store=store, embedder=embedder) as collection:
        found["fill, s"] = timed(lambda: fill(collection, engine, n_passages)) / 1e3
    rng = np.random.default_rng(2)
    queries = [" ".join(f"w{number}" for number in rng.integers(20, N_WORDS, size=5)) + " w1 w2 w3" for _ in range(N_QUERIES)]
    with Collection.open(name, store=store, embedder=embedder) as collection:
        found["first search by both"] = timed(lambda: collection.search(queries[0]))
        for how in ("words", "meaning", "hybrid"):
            times = [timed(lambda query=query, how=how: collection.search(query, 8, how)) for query in queries]
            found[f"search by {how}"] = statistics.median(times)
        measure_upkeep(collection, store, found)
        found["SQLite file, MB"] = (collection.folder / "documents.db").stat().st_size / 1e6
        found["vectors, MB"] = sum(file.stat().st_size for file in collection.folder.glob("vectors-*")) / 1e6
    return found


def measure_upkeep(collection: Collection, store: Path, found: dict[str, float]) -> None:
    folder = store / "files"
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text("w77 " * 100)
    found["add a file"] = timed(lambda: collection.add(folder))
    (folder / "a.txt").write_text("w78 " * 100)
    found["update a changed file"] = timed(collection.update)
    found["update, nothing changed"] = timed(collection.update)
    found["remove a document of 100 passages"] = timed(lambda: collection.remove("/documents/0.txt"))


def measure_vectors(store: Path, n_passages: int, found: dict[str, float], *, usearch: bool) -> None:
    """Compare the exact search, that by signs, and usearch's HNSW graph over the same vectors."""
    (path,) = (store / f"n{n_passages}").glob("vectors-*.f32")
    rows = vectors.open_rows(path, path.stat().st_size // (4 * N_DIMS), N_DIMS)
    rng = np.random.default_rng(3)
    queries = rows.values[rng.integers(len(rows.values), size=N_QUERIES)]
    queries = queries + 0.02 * rng.normal(size=queries.shape).astype(np.float32)
    exact = [vectors.nearest(rows, query, 50, exact_rows=len(rows.values))[0] for query in queries]

    def compare(name: str, search: Callable[[Any], Sequence[int]]) -> None:
        found[f"{name}"] = statistics.median(timed(lambda query=query: search(query)) for query in queries)
        same = [len(set(one) & set(search(query))) for one, query in zip(exact, queries, strict=True)]
        found[f"{name}: share of the 50 nearest"] = sum(same) / 50 / len(same)

    compare("vectors, all", lambda query: vectors.nearest(rows, query, 50, exact_rows=len(rows.values))[0])
    compare("vectors, by signs", lambda query: vectors.nearest(rows, query, 50, exact_rows=0)[0])
    if usearch:
        from usearch.index import Index

        index = Index(ndim=N_DIMS, metric="ip", dtype="f16")
        found["usearch: build, s"] = timed(lambda: index.add(np.arange(len(rows.values)), rows.values)) / 1e3
        compare("usearch", lambda query: index.search(query, 50).keys.tolist())
        target = store / "graph.usearch"
        index.save(str(target))
        found["usearch: file, MB"] = target.stat().st_size / 1e6
        target.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--store", type=Path, help="folder for the collections; default: a temporary one")
    parser.add_argument("--usearch", action="store_true", help="compare with usearch, which has to be installed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = arguments.store or Path(temporary)
        store.mkdir(exist_ok=True)
        columns = []
        for n_passages in arguments.passages:
            found = measure(store, n_passages)
            measure_vectors(store, n_passages, found, usearch=arguments.usearch)
            columns.append(found)
            shutil.rmtree(store / f"n{n_passages}")
    print("| ms, unless said | " + " | ".join(f"{n:,}" for n in arguments.passages) + " |")
    print("|---|" + "---:|" * len(columns))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{column[name]:.3g}" for column in columns) + " |")


if __name__ == "__main__":
    main()
