"""The tokenizer of a folder in Hugging Face's layout, on the `tokenizers` package.

`tokenizer.json` defines how text becomes tokens; `tokenizer_config.json`, `generation_config.json` and `genai_config.json`
name the tokens that are special, and that begin and end a text. All are untrusted input: bounded, checked, and never
executed.

Bytes of a token follow from the decoder in `tokenizer.json`, for byte-level BPE (GPT-2 and after) and for SentencePiece ("▁"
for a space, <0xE2> for a byte). Joined, they are the text that transformers decodes, with two differences: the space that
SentencePiece tokenizers put before a text stays, since a token does not know if it is the first, and invalid UTF-8 is left to
the caller.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import BackendError, BackendUnavailableError, ModelFileError, UsageError
from edge.files import parse_json, read_bytes, read_json, read_text
from edge.prompt.tokenizers import Token, Tokenizer

__all__ = ["HFTokenizer"]

_MAX_TOKENIZER_BYTES = 256 << 20  # Gemma's, with 262,144 tokens, has 33 MB
_MAX_TEMPLATE_BYTES = 1 << 20
_MOST_WITHOUT_ROW = 256  # added tokens of a larger sister: text-only sizes of Gemma 3 share a token for pictures
_INSTALL = "Install it: pip install tokenizers"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Tokens that end a turn whatever the files say, which many forget; llama.cpp has such a list too.
_TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>",
    "<|eot|>", "<|return|>", "<|call|>", "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<EOT>", "_<EOT>",
)  # fmt: skip


class _AddedToken(msgspec.Struct):
    content: str
    id: int = -1
    special: bool = False


class _Model(msgspec.Struct):
    unk_token: str | None = None
    unk_id: int | None = None


class _TokenizerFile(msgspec.Struct):
    model: _Model
    added_tokens: list[_AddedToken] = []
    decoder: dict[str, Any] | None = None


class _Template(msgspec.Struct):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct):
    chat_template: str | list[_Template] | None = None
    bos_token: str | _AddedToken | None = None
    eos_token: str | _AddedToken | None = None
    pad_token: str | _AddedToken | None = None
    add_bos_token: bool | None = None
    added_tokens_decoder: dict[str, _AddedToken] = {}


class _Ids(msgspec.Struct):
    """The common fields of generation_config.json, config.json and the "model" of genai_config.json."""

    bos_token_id: int | list[int] | None = None
    eos_token_id: int | list[int] | None = None


class _GenaiConfig(msgspec.Struct):
    model: _Ids


class HFTokenizer(Tokenizer):
    """See the module.

    Args:
        folder: has `tokenizer.json` and any of the files above.
        n_vocab: token ids of the model; None is those of the tokenizer. A few added tokens may lie behind them; texts with one
            are refused.

    Attributes:
        n_tokens: token ids of the tokenizer; a model may have room for more.
        chat_template: Jinja source, or None.
        bos_text, eos_text: text of these tokens, "" where there is none.
        adds_bos: `add_special` puts the beginning-of-sequence token in front.

    Raises:
        BackendUnavailableError: the `tokenizers` package is not installed.
        ModelFileError: a file is missing, damaged or of an unknown kind, or the tokenizer is not this model's.
    """

    def __init__(self, folder: Path, n_vocab: int | None = None) -> None:
        try:
            library = importlib.import_module("tokenizers")
        except ImportError as error:
            raise BackendUnavailableError(f"The package tokenizers cannot be loaded: {error}.", _INSTALL) from error
        path = folder / "tokenizer.json"
        data = read_bytes(path, _MAX_TOKENIZER_BYTES)
        described = parse_json(path, data, _TokenizerFile)
        config = _optional_json(folder / "tokenizer_config.json", _TokenizerConfig) or _TokenizerConfig()
        self._piece = _piece_decoder(path, described.decoder)
        with _wrap_errors(f"{path} cannot be used"):
            self._native = library.Tokenizer.from_buffer(data)
            self._native.no_truncation()
            self._native.no_padding()
            self.n_tokens: int = max(
                [self._native.get_vocab_size(with_added_tokens=True), *(token.id + 1 for token in described.added_tokens)]
            )
        super().__init__(self.n_tokens if n_vocab is None else n_vocab)
        self.chat_template = _chat_template(folder, config)
        ids = _token_ids(folder)
        bos = self._id_of(config.bos_token, [id for each in ids for id in _listed(each.bos_token_id)])
        eos = self._id_of(config.eos_token, [id for each in ids for id in _listed(each.eos_token_id)])
        self.bos_text, self.eos_text = self._text_of(bos), self._text_of(eos)
        flagged = [token for token in described.added_tokens if token.special]
        flagged += [token for token in config.added_tokens_decoder.values() if token.special]
        named = [self._known(token.content) for token in flagged] + [self._known(_text(config.pad_token)), bos, eos]
        self._specials = frozenset(id for id in named if id is not None)
        ends = [id for each in ids for id in _listed(each.eos_token_id)] + [self._known(text) for text in _TURN_ENDS] + [eos]
        self._ends = frozenset(id for id in ends if id is not None and self._native.id_to_token(id) is not None)
        unknown = self._known(described.model.unk_token or "")
        if unknown is None:
            unknown = described.model.unk_id
        # Text outside the vocabulary becomes the unknown token, which is fine unless it begins or ends something.
        self._untypable = self._specials - ({unknown} - self._ends - {bos})
        texts = sorted((self._text_of(id) for id in self._untypable), key=len, reverse=True)
        self._untypable_text = re.compile("|".join(re.escape(text) for text in texts if text)) if any(texts) else None
        self._leading = self._find_leading(config.add_bos_token, bos)
        self.adds_bos = bool(self._leading)
        self._check_rows(folder, [*self._leading, *(id for id in (bos, eos) if id is not None)])

    # -- for Tokenizer

    def _encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        text = text.encode("utf-8", "replace").decode()
        ids = self._ids(text, parse_special=True) if parse_special else self._ids_of_typed(text)
        if max(ids, default=0) >= self.n_vocab:
            unknown = next(id for id in ids if id >= self.n_vocab)
            raise UsageError(
                f"The text has the token {self._text_of(unknown)!r}, which this model does not know, only its tokenizer.",
                "Leave it out: it is meant for another size of this model, such as one that reads pictures.",
            )
        return [*self._leading, *ids] if add_special else ids

    def _look_up(self, token: int) -> Token:
        text, is_end = self._text_of(token), token in self._ends  # "" where the model has a row and the tokenizer no token
        if token in self._specials:
            return Token(b"", text.encode(), is_end)
        piece = self._piece(text)
        return Token(piece, piece, is_end)

    # -- inside

    def _check_rows(self, folder: Path, needed: list[int]) -> None:
        """Refuse the tokenizer of another model. Added tokens behind the last row are harmless unless every text needs one."""
        n_words = self._native.get_vocab_size(with_added_tokens=False)
        fits = n_words <= self.n_vocab and self.n_tokens <= self.n_vocab + _MOST_WITHOUT_ROW
        if not fits or any(id >= self.n_vocab for id in needed):
            raise ModelFileError(
                f"The tokenizer in {folder} has {self.n_tokens:,} tokens, the model {self.n_vocab:,}.",
                "It belongs to another model: copy the tokenizer files of this one, or download or convert the model again.",
            )

    def _ids(self, text: str, *, parse_special: bool) -> list[int]:
        if not text:
            return []
        with _wrap_errors("A text could not be tokenised", BackendError):
            self._native.encode_special_tokens = not parse_special
            return list(self._native.encode(text, add_special_tokens=False).ids)

    def _ids_of_typed(self, text: str) -> list[int]:
        """Tokenise what a person typed: never to special tokens, though the vocabulary itself may hold their text."""
        ids = self._ids(text, parse_special=False)
        if self._untypable.isdisjoint(ids):
            return ids
        # Unigram vocabularies hold the special tokens as words. Split in two, such a word is two ordinary ones.
        pieces, position = [], 0
        for match in self._untypable_text.finditer(text) if self._untypable_text is not None else ():
            pieces.append(text[position : match.start() + 1])
            position = match.start() + 1
        pieces.append(text[position:])
        return [id for piece in pieces for id in self._ids(piece, parse_special=False) if id not in self._untypable]

    def _known(self, text: str) -> int | None:
        id: int | None = self._native.token_to_id(text) if text else None
        return id

    def _text_of(self, id: int | None) -> str:
        return (self._native.id_to_token(id) or "") if id is not None and id >= 0 else ""

    def _id_of(self, named: str | _AddedToken | None, listed: list[int]) -> int | None:
        """Return the token that tokenizer_config.json names, else the first of the ids that the others list."""
        known = self._known(_text(named))
        return known if known is not None else next((id for id in listed if self._text_of(id)), None)

    def _find_leading(self, add_bos: bool | None, bos: int | None) -> list[int]:
        """Return the tokens that the tokenizer puts before a text."""
        if add_bos is not None:
            return [bos] if add_bos and bos is not None else []
        with _wrap_errors("The tokenizer's post-processor failed"):
            plain = list(self._native.encode("a", add_special_tokens=False).ids)
            marked = list(self._native.encode("a", add_special_tokens=True).ids)
        start = next((i for i in range(len(marked) - len(plain) + 1) if marked[i : i + len(plain)] == plain), 0)
        return marked[:start]


@contextmanager
def _wrap_errors(what: str, kind: type[ModelFileError] | type[BackendError] = ModelFileError) -> Iterator[None]:
    """Turn the library's errors into edge's: plain Exceptions, and BaseExceptions for panics of its Rust code."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise kind(f"{what}: {error}.", "Download or convert the model again.") from error


def _optional_json(path: Path, kind: type[Any]) -> Any:
    return read_json(path, kind) if path.exists() else None


def _chat_template(folder: Path, config: _TokenizerConfig) -> str | None:
    """Prefer the template's own file to the field, as transformers does; of several named ones take the default."""
    own = folder / "chat_template.jinja"
    if own.exists():
        return read_text(own, _MAX_TEMPLATE_BYTES)
    if isinstance(config.chat_template, list):
        return next((each.template for each in config.chat_template if each.name == "default"), None)
    return config.chat_template


def _token_ids(folder: Path) -> list[_Ids]:
    found = [_optional_json(folder / name, _Ids) for name in ("generation_config.json", "config.json")]
    genai: _GenaiConfig | None = _optional_json(folder / "genai_config.json", _GenaiConfig)
    return [each for each in (found[0], genai.model if genai else None, found[1]) if each is not None]


def _listed(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else ids


def _text(token: str | _AddedToken | None) -> str:
    return "" if token is None else token if isinstance(token, str) else token.content


def _byte_letters() -> dict[str, int]:
    """Return GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _byte_level(text: str, letters: dict[str, int]) -> bytes:
    try:
        return bytes([letters[letter] for letter in text])
    except KeyError:  # an added token is written as it is
        return text.encode()


def _piece_decoder(path: Path, decoder: dict[str, Any] | None) -> Callable[[str], bytes]:
    """Return the function from a token's text to its bytes, told from the decoder in tokenizer.json.

    Raises:
        ModelFileError: the decoder is of a kind whose tokens have no bytes of their own, such as BERT's.
    """
    replacements: list[tuple[str, str]] = []
    has_bytes = False
    for step in _steps(path, decoder):
        kind = step.get("type")
        if kind == "ByteLevel":
            letters = _byte_letters()
            return lambda text: _byte_level(text, letters)
        if kind == "Replace":
            pattern = step.get("pattern")
            old, new = pattern.get("String") if isinstance(pattern, dict) else None, step.get("content")
            if not isinstance(old, str) or not old or not isinstance(new, str):
                raise _unknown(path, "Replace with a regular expression")
            replacements.append((old, new))
        elif kind == "Metaspace":
            replacements.append((str(step.get("replacement", "▁")), " "))
        elif kind == "ByteFallback":
            has_bytes = True
        elif kind not in ("Fuse", "Strip"):  # these only touch whole texts
            raise _unknown(path, str(kind))
    if not replacements and not has_bytes:
        raise _unknown(path, "none")

    def piece(text: str) -> bytes:
        byte = _BYTE.fullmatch(text) if has_bytes else None
        if byte is not None:
            return bytes([int(byte[1], 16)])
        for old, new in replacements:
            text = text.replace(old, new)
        return text.encode()

    return piece


def _steps(path: Path, decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        raise _unknown(path, "none")
    if decoder.get("type") != "Sequence":
        return [decoder]
    steps = decoder.get("decoders")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise _unknown(path, "a damaged sequence")
    return steps


def _unknown(path: Path, kind: str) -> ModelFileError:
    return ModelFileError(
        f"edge does not know the decoder in {path} ({kind}), only byte-level BPE and SentencePiece.",
        "Choose another model, or run it as GGUF.",
    )
