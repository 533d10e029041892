"""From the pieces of a prompt to tokens, so that only the template's own words become special tokens.

The unit is the *run*: the text between two control tokens of the template. A tokenizer never joins text across a control
token, so tokenising the runs of a prompt one by one, without control tokens, gives the same ids as tokenising the whole
prompt; and a run seen in an earlier turn need not be tokenised again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Control", "Encoder", "KnownReply", "Piece", "Tokenize"]

KnownReply = Callable[[str], "Sequence[int] | None"]
"""Returns the tokens that an assistant message was generated as, given its text, or None."""

MARKER = re.compile(r"<[^<>\n]{1,120}>|\[[^\[\]\n]{1,80}\]")
"""Matches special tokens of nearly all models. Used to find them fast, never to decide."""

_MAX_MEMO = 4096
_LEADS = ("\n", "x", ".")


class Tokenize(Protocol):
    """`Tokenizer.tokenize`."""

    def __call__(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Control:
    """A control token that the template wrote."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text without control tokens.

    Attributes:
        text: the text.
        is_foreign: a person or a tool wrote it: what looks like a token of the template in it is split.
        reply: the assistant message that this is the text of, white space around it stripped.
    """

    text: str
    is_foreign: bool = False
    reply: str | None = None


class Encoder:
    """Tokenises prompts of one template with one tokenizer, and remembers how the two behave.

    Args:
        markers: texts in the template that may be tokens, such as "<tool_call>".
    """

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = tuple(markers)
        self._split_memo: dict[str, tuple[Control | str, ...]] = {}
        self._facts: dict[tuple[str, ...], bool] = {}

    def encode(self, items: Iterable[Control | Piece], tokenize: Tokenize, known: KnownReply | None = None) -> list[int]:
        """Return the token ids of a prompt."""
        ids: list[int] = []
        run: list[Piece] = []
        before: Control | None = None
        for item in [*items, None]:
            if isinstance(item, Piece):
                run.append(item)
                continue
            if run:
                ids += self._encode_run(run, before, item, tokenize, known)
                run = []
            if item is not None:
                ids += item.ids
                before = item
        return ids

    def encode_reply(self, text: str, before: Control | Piece | None, tokenize: Tokenize) -> list[int]:
        """Return the tokens of a reply as a model writes them behind a prompt, whose last part is `before`."""
        leads = self._leads(before, tokenize) if isinstance(before, Control) else _LEADS
        return self._encode_text(text, tokenize, leads)

    def split(self, text: str, tokenize: Tokenize) -> tuple[Control | str, ...]:
        """Split text at the control tokens that are written in it."""
        parts = self._split_memo.get(text)
        if parts is None:
            found: list[Control | str] = []
            position = 0
            for match in MARKER.finditer(text):
                if self._has_control(match.group(), tokenize):
                    control = tuple(tokenize(match.group(), parse_special=True))
                    if len(control) == 1:
                        found += [text[position : match.start()], Control(match.group(), control)]
                        position = match.end()
            found.append(text[position:])
            parts = tuple(
                part
                for piece in found
                for part in (self._search(piece, tokenize) if isinstance(piece, str) else [piece])
                if part != ""
            )
            if len(self._split_memo) >= _MAX_MEMO:
                self._split_memo.clear()
            if len(text) < 4096:
                self._split_memo[text] = parts
        return parts

    def tokens_of_template(self, tokenize: Tokenize) -> list[str]:
        """Return the texts in the template that this tokenizer always makes one token of, control token or not."""
        return [marker for marker in self._markers if self._is_token(marker, tokenize)]

    def _once(self, *key: str, find: Callable[[], bool]) -> bool:
        """Return what `find` returned for this key the first time."""
        if key not in self._facts:
            self._facts[key] = find()
        return self._facts[key]

    @staticmethod
    def _has_control(text: str, tokenize: Tokenize) -> bool:
        return tokenize(text, parse_special=True) != tokenize(text, parse_special=False)

    def _is_token(self, text: str, tokenize: Tokenize) -> bool:
        return self._once("token", text, find=lambda: len(tokenize(text, parse_special=False)) == 1)

    def _search(self, text: str, tokenize: Tokenize) -> list[Control | str]:
        """Find control tokens that `MARKER` does not match, by bisection: exact, and slow where there are some."""
        found: list[Control | str] = []
        while text and self._has_control(text, tokenize):
            low, high = 1, len(text)  # the shortest prefix that holds a whole control token
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if self._has_control(text[:middle], tokenize) else (middle + 1, high)
            end = low
            low, high = 0, end - 1  # the shortest suffix of that
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if self._has_control(text[middle:end], tokenize) else (low, middle - 1)
            found += [text[:low], Control(text[low:end], tuple(tokenize(text[low:end], parse_special=True)))]
            text = text[end:]
        return [*found, text]

    def _encode_run(
        self, run: list[Piece], before: Control | None, after: Control | None, tokenize: Tokenize, known: KnownReply | None
    ) -> list[int]:
        text = "".join(piece.text for piece in run)
        start, end = 0, len(text)
        # Some tokens swallow the white space beside them (Phi-3).
        if before is not None and text[:1].isspace() and self._eats(before, tokenize, right=True):
            start = len(text) - len(text.lstrip())
        if after is not None and text[-1:].isspace() and self._eats(after, tokenize, right=False):
            end = max(start, len(text.rstrip()))
        leads = self._leads(before, tokenize)
        ids: list[int] = []
        position = start
        for cut_start, cut_end, tokens in self._cuts(run, text, tokenize, known):
            if cut_start < position or cut_end > end:
                continue
            ids += self._encode_text(text[position:cut_start], tokenize, leads)
            ids += tokens
            position, leads = cut_end, _LEADS
        return ids + self._encode_text(text[position:end], tokenize, leads)

    def _cuts(
        self, run: list[Piece], text: str, tokenize: Tokenize, known: KnownReply | None
    ) -> list[tuple[int, int, Sequence[int]]]:
        """Return the parts of a run that are not tokenised with the rest: (start, end, tokens of that part)."""
        cuts: list[tuple[int, int, Sequence[int]]] = []
        position = 0
        for piece in run:
            if piece.is_foreign and MARKER.search(piece.text):
                for marker in self._markers:
                    if marker in piece.text and self._is_token(marker, tokenize):
                        for match in re.finditer(re.escape(marker), piece.text):
                            middle = position + match.start() + 1
                            cuts.append((middle, middle, ()))
            if piece.reply is not None and known is not None:
                tokens = known(piece.reply)
                start = position - (len(piece.reply) - len(piece.reply.lstrip()))
                if tokens and start >= 0 and text.startswith(piece.reply, start):
                    cuts.append((start, start + len(piece.reply), tokens))
            position += len(piece.text)
        return sorted(cuts, key=lambda cut: cut[:2])

    def _leads(self, before: Control | None, tokenize: Tokenize) -> tuple[str, ...]:
        """Return texts that stand for what precedes a run; none where a run is tokenised as at the start of a text."""
        return () if before is None or self._restarts(before, tokenize) else (before.text, *_LEADS)

    def _encode_text(self, text: str, tokenize: Tokenize, leads: Sequence[str]) -> list[int]:
        if text and leads and self._prefixes(tokenize):
            # Tokenizers of the SentencePiece kind put a space before a text, but not before text that follows other text.
            is_plain = not self._has_control(text, tokenize)
            for lead in leads:
                if lead not in _LEADS and not is_plain:
                    continue
                front = tokenize(lead, parse_special=is_plain)
                ids = tokenize(lead + text, parse_special=is_plain)
                if ids[: len(front)] == front:
                    return ids[len(front) :]
        return tokenize(text, parse_special=False) if text else []

    def _prefixes(self, tokenize: Tokenize) -> bool:
        """Tell if the tokenizer puts a space before a text."""

        def find() -> bool:
            line_break = tokenize("\n", parse_special=False)
            return tokenize("\nx", parse_special=False) != line_break + tokenize("x", parse_special=False)

        return self._once("prefix", find=find)

    def _restarts(self, control: Control, tokenize: Tokenize) -> bool:
        """Tell if text behind a control token is tokenised as at the start of a text."""

        def find() -> bool:
            return tokenize(control.text + "x", parse_special=True) == [*control.ids, *tokenize("x", parse_special=False)]

        return self._once("restarts", control.text, find=find)

    def _eats(self, control: Control, tokenize: Tokenize, *, right: bool) -> bool:
        """Tell if a control token swallows the white space on one side of it."""

        def find() -> bool:
            texts = [control.text + space + "x" if right else "x" + space + control.text for space in ("\n\n", "")]
            return tokenize(texts[0], parse_special=True) == tokenize(texts[1], parse_special=True)

        return self._once("right" if right else "left", control.text, find=find)
