"""Splits a reply, while it is generated, into pieces to speak: at its first clause, then by sentence.

Where twelve words have no clause, the first piece ends between two of them. Every other piece ends in front of the next word,
so it is known that a sentence is over: never inside a number, an abbreviation, an address or inline code. A block of code, a
table or a formula is one piece. How a reply arrives does not change its pieces.
"""

from __future__ import annotations

import re

__all__ = ["Sentences", "split_sentences"]

LONGEST = 320
"""Characters of a piece after which a sentence is split at a clause, or between two words."""

_FIRST_WORDS, _FIRST_CHARACTERS = 3, 12  # least of a first clause: less than that sounds cut off
_EARLY = re.compile(r"(?:[^\s`*_\[\](){}<>|#$\\~\"“”«»]+[^\S\n]+){12}(?=\w)")
_EARLY_LEAST, _EARLY_MOST = 5, 8  # words of a first piece where twelve have no mark: a slow model would be silent for long
_BREATHS = (
    "and but or because that which who when while where if as than",
    "of in on off at for with from by to over into after",
)
_PHRASES = frozenset(" ".join(_BREATHS).split(" "))
"""Words in front of which a speaker may breathe."""
_LEAST_CLAUSE = 80  # characters in front of a clause at which a long sentence is split

_MARK = re.compile(
    r"""(?P<code>`+)
    | (?P<line>\n)
    | (?P<stop>[.!?…]+)(?P<close>["'”’»)\]*_]*)
    | (?P<full>[。！？]["”’」』）]*)
    | (?P<clause>[,;:—–])["'”’»)\]*_]*""",
    re.VERBOSE,
)
_SPACE = re.compile(r"\s*")
_LIST = re.compile(r"(?:[-*+]|\d{1,3}[.)])[ \t]")
_BLOCK = re.compile(r"#{1,6}[ \t]|>|\||`{3}|~{3}|\$\$|\\\[|" + _LIST.pattern)
_MAYBE_BLOCK = re.compile(r"(?:#{1,6}|[-*+]|\d{1,3}[.)]?|`{1,2}|~{1,2}|\$|\\)\Z")
_FENCE = re.compile(r"(`{3,}|~{3,})")
_FORMULAS = (  # a blank line ends one that is not closed
    ("$$", re.compile(r"\$\$|\n[ \t]*\n")),
    ("\\[", re.compile(r"\\\]|\n[ \t]*\n")),
)
_WORD = re.compile(r"[^\s(\[{\"“‘*_]*\Z")

_TITLES = ("mr mrs ms dr prof st mt gen gov sen rep capt lt col sgt rev hon", "approx vs cf e.g i.e eg ie ca z.b d.h bzw")
_NEVER = frozenset(" ".join(_TITLES).split(" "))
"""Words behind which a full stop never ends a sentence."""
_COUNTED = ("no nos fig figs eq sec ch vol p pp ed art min max est", "jan feb mar apr jun jul aug sep sept oct nov dec")
_NUMBERED = frozenset(" ".join(_COUNTED).split(" "))
"""Words behind which it does not if a number follows."""


class Sentences:
    """See `edge_voice.stages.Splitter`."""

    def __init__(self) -> None:
        self._rest = ""
        self._is_first = True
        self._at_line_start = True

    def add(self, text: str) -> list[str]:
        """Take more of the reply, and return the pieces that are complete now."""
        self._rest += text
        return self._take(is_over=False)

    def end(self) -> list[str]:
        """Return what is left: the reply is over. The next `add` begins another one."""
        pieces = self._take(is_over=True)
        self._is_first = self._at_line_start = True
        return pieces

    def _take(self, *, is_over: bool) -> list[str]:
        pieces = []
        while self._rest:
            end = _find_end(self._rest, self._at_line_start, self._is_first, is_over)
            if end is None:
                break
            piece, self._rest = self._rest[:end], self._rest[end:]
            pieces.append(piece)
            self._is_first = self._is_first and not piece.strip()
            tail = piece[len(piece.rstrip()) :]
            self._at_line_start = "\n" in tail or (self._at_line_start and not piece.strip())
        return pieces


def split_sentences(text: str) -> list[str]:
    """Return the pieces of a whole text; joined, they are the text."""
    splitter = Sentences()
    return [*splitter.add(text), *splitter.end()]


def _find_end(text: str, at_line_start: bool, is_first: bool, is_over: bool) -> int | None:
    """Return where the first piece ends; None if that depends on what follows.

    Args:
        text: not empty.
        at_line_start: a line begins with it.
        is_first: it may be a clause.
        is_over: nothing follows.
    """
    start = _skip(text, 0)
    if start == len(text):
        return start if is_over else None
    if at_line_start or "\n" in text[:start]:
        if not is_over and _MAYBE_BLOCK.match(text, start):
            return None
        end = _block_end(text, start, is_over)
        if end != start:
            return end
    end = _prose_end(text, start, is_first, is_over)
    if is_first and (early := _early_end(text, start)) is not None and (end is None or end > early):
        return early
    if end is not None and end - start <= LONGEST:
        return end
    if len(text) - start > LONGEST:
        return _forced_end(text, start, is_over)
    return end


def _early_end(text: str, start: int) -> int | None:
    """Return where a first piece may end before any mark, in front of a phrase if there is one; None where it should not."""
    found = _EARLY.match(text, start, start + LONGEST)
    if found is None:
        return None
    words = list(re.finditer(r"\S+", found[0]))
    ends = [n for n in range(_EARLY_LEAST, _EARLY_MOST + 1) if words[n - 1][0][-1].isalpha() and words[n][0].isalpha()]
    phrases = [n for n in ends if words[n][0] in _PHRASES]
    return start + words[(phrases or ends)[-1]].start() if ends else None


def _skip(text: str, place: int) -> int:
    """Return the place of the next character that is no white space."""
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _block_end(text: str, start: int, is_over: bool) -> int | None:
    """Return the end of the code, table or formula that begins at `start`; `start` if none does; None as `_find_end`."""
    if fence := _FENCE.match(text, start):
        if fence.end() == len(text) and not is_over:
            return None
        closing = re.compile(rf"\n[ \t]*{re.escape(fence[1][0])}{{{len(fence[1])},}}[ \t]*(?=\n|\Z)")
        found = closing.search(text, fence.end())
        return _behind(text, found.end() if found else None, is_over)
    if text[start] == "|":
        return _table_end(text, start, is_over)
    for opening, ending in _FORMULAS:
        if text.startswith(opening, start):
            found = ending.search(text, start + 2)
            return _behind(text, found.end() if found else None, is_over)
    return start


def _behind(text: str, end: int | None, is_over: bool) -> int | None:
    """Return the place of the first word behind a block; None if it has no end yet, or nothing follows yet."""
    if end is None:
        return len(text) if is_over else None
    place = _skip(text, end)
    return place if place < len(text) or is_over else None


def _table_end(text: str, start: int, is_over: bool) -> int | None:
    place = start
    while True:
        line_end = text.find("\n", place)
        if line_end < 0:
            return len(text) if is_over else None
        place = _skip(text, line_end)
        if place == len(text):
            return place if is_over else None
        if text[place] != "|" or text.count("\n", line_end, place) > 1:
            return place


def _prose_end(text: str, start: int, is_first: bool, is_over: bool) -> int | None:
    """Return where the sentence ends, or the clause if it is the first piece; None as `_find_end`."""
    place = start
    while found := _MARK.search(text, place):
        place = found.end()
        if found["code"]:
            closing = re.compile(rf"(?<!`){found['code']}(?!`)").search(text, place, start + LONGEST)
            if closing is not None and (closing.end() < len(text) or is_over):
                place = closing.end()
            elif len(text) - start <= LONGEST and not is_over:
                return None  # it may still be closed
            continue
        following = _skip(text, place)
        if found["line"]:
            following = _skip(text, found.start())
        if following == len(text) and not is_over:
            return None
        if following == len(text):
            return following
        if found["line"]:
            is_end = _ends_line(text, start, found.start(), following, is_over)
        elif found["full"]:
            is_end = True
        elif following == place:
            is_end = False  # inside a number, a name or an address
        elif found["stop"]:
            is_end = _ends_sentence(text, start, found, following)
        else:
            is_end = is_first and _ends_clause(text[start : found.start()], text[following])
        if is_end is None:
            return None
        if is_end:
            return following
    return len(text) if is_over else None


def _ends_line(text: str, start: int, line_end: int, following: int, is_over: bool) -> bool | None:
    """Return whether a piece ends with its line; None if that depends on what follows."""
    if text.count("\n", line_end, following) > 1 or text.startswith("#", start):
        return True
    if not is_over and _MAYBE_BLOCK.match(text, following):
        return None
    return _BLOCK.match(text, following) is not None


def _ends_sentence(text: str, start: int, found: re.Match[str], following: int) -> bool:
    """Return whether a full stop, or several marks, end a sentence in front of the word at `following`."""
    is_capital = not text[following].islower()
    if found["stop"] != ".":
        return is_capital or (not found["close"] and found["stop"][-1] in "!?")
    found_word = _WORD.search(text, start, found.start())
    word = found_word[0].lower() if found_word else ""
    is_initial = len(word) == 1 and word.isalpha() and text[found.start() - 1].isupper() and word != "i"
    if word in _NEVER or is_initial or (word in _NUMBERED and text[following].isdigit()):
        return False
    if word.isdigit() and text[: found.start()].rpartition("\n")[2].strip() == word:
        return False  # the number of a list
    return is_capital


def _ends_clause(before: str, following: str) -> bool:
    is_long = len(before) >= _FIRST_CHARACTERS and len(before.split()) >= _FIRST_WORDS
    return is_long and not following.isdigit()


def _forced_end(text: str, start: int, is_over: bool) -> int | None:
    """Return where a sentence that is too long is split: behind a clause, else between two words, wherever that is."""
    limit = start + LONGEST
    clauses = [found.end() for found in re.finditer(r"[,;:—–]\s+(?=\S)", text[:limit])]
    words = [found.end() for found in re.finditer(r"\s+(?=\S)", text[:limit]) if found.start() > start]
    later = re.compile(r"\s+(?=\S)").search(text, limit)
    for ends in ([end for end in clauses if end - start >= _LEAST_CLAUSE], words, [later.end()] if later else []):
        if ends:
            return ends[-1]
    return len(text) if is_over else None
