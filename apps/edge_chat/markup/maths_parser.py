"""Parses the LaTeX of a formula into a tree. Whatever it does not know makes it refuse: a guess could change the formula."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edge_chat.markup.maths_symbols import ACCENTS, ALPHABET_HOLES, ALPHABETS, FUNCTIONS, IGNORED, SPACES, SYMBOLS
from edge_chat.markup.maths_tree import (
    Atom,
    Binomial,
    Boxed,
    Fenced,
    Fraction,
    Matrix,
    Node,
    Root,
    Row,
    Script,
    UnsupportedMathsError,
)

__all__ = ["parse"]

_MAX_CHARS = 4000
_MAX_DEPTH = 40

_TOKEN = re.compile(
    r"\\(?:operatorname|tag)\*"
    r"|\\[A-Za-z]+"
    r"|\\\\(?:\[[\d.]+ ?(?:pt|em|ex|mm|cm)\])?"  # a line end, with the space below it
    r"|\\.|\d+(?:\{?[.,]\}?\d+)*|\s+|.",
    re.DOTALL,
)
_TEXT_COMMANDS = frozenset({"text", "textrm", "textnormal", "textup", "textit", "textsf", "texttt", "mbox", "hbox"})
_UPRIGHT_COMMANDS = frozenset({"mathrm", "mathit", "mathnormal", "mathop", "mathord", "mathbin", "mathrel"})
_MATRICES = {
    "matrix": ("", ""),
    "smallmatrix": ("", ""),
    "pmatrix": ("(", ")"),
    "bmatrix": ("[", "]"),
    "Bmatrix": ("{", "}"),
    "vmatrix": ("|", "|"),
    "Vmatrix": ("‖", "‖"),
    "cases": ("{", ""),
    "rcases": ("", "}"),
    "array": ("", ""),
}
_ALIGNED = frozenset({"aligned", "align", "alignat", "split", "eqnarray", "gather", "gathered", "multline", "equation"})
_PLAIN = {"+": "bin", "-": "bin", "*": "bin", "=": "rel", "<": "rel", ">": "rel", ",": "punct", ";": "punct", ":": "punct"}
_PLAIN |= {"(": "open", "[": "open", ")": "close", "]": "close", "/": "slash"}


def parse(source: str) -> Row:
    """Parse a formula.

    Args:
        source: LaTeX without its delimiters.

    Raises:
        UnsupportedMathsError: it has an unknown command, is not well-formed, or is far too long or deep.
    """
    if len(source) > _MAX_CHARS:
        raise UnsupportedMathsError("too long")
    return _Parser(_TOKEN.findall(source)).parse_all()


class _Parser:
    """A recursive descent over the tokens."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._position = 0
        self._depth = 0
        self._alphabet = ""

    def parse_all(self) -> Row:
        """Parse everything. Line ends outside an environment put equations below each other."""
        rows = self._rows(until="")
        if len(rows) == 1 and len(rows[0]) == 1:
            return rows[0][0]
        return Row((Matrix(rows, "", "", is_aligned=True),))

    # Tokens

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UnsupportedMathsError("too deep")
        yield
        self._depth -= 1

    def _peek(self) -> str:
        return self._tokens[self._position] if self._position < len(self._tokens) else ""

    def _next(self) -> str:
        part = self._peek()
        if not part:
            raise UnsupportedMathsError("incomplete")
        self._position += 1
        return part

    def _skip_space(self) -> None:
        while self._peek().isspace():
            self._position += 1

    def _raw_group(self) -> str:
        """Return the text of the next group, as it was written."""
        self._skip_space()
        if self._next() != "{":
            raise UnsupportedMathsError("a group was expected")
        text, depth = "", 1
        while True:
            part = self._next()
            depth += {"{": 1, "}": -1}.get(part, 0)
            if not depth:
                return text
            text += part

    # Structure

    def _rows(self, until: str) -> tuple[tuple[Row, ...], ...]:
        """Parse rows of cells up to `\\end{until}`, or everything if that is empty."""
        rows: list[tuple[Row, ...]] = []
        cells: list[Row] = []
        while True:
            cells.append(self._row(stops=("&", "\\\\", "\\end")))
            part = self._peek()
            if part == "&":
                if not until:
                    raise UnsupportedMathsError("& outside an environment")
                self._next()
                continue
            rows.append(tuple(cells))
            cells = []
            if part in ("", "\\end"):
                break
            self._next()
        if until:
            self._next()
            if self._raw_group() != until:
                raise UnsupportedMathsError("environments overlap")
        elif self._peek():
            raise UnsupportedMathsError("unbalanced")
        if len(rows) > 1 and not any(cell.nodes for cell in rows[-1]):
            rows.pop()  # a line end after the last row
        return tuple(rows)

    def _row(self, stops: tuple[str, ...]) -> Row:
        """Parse nodes up to one of the tokens `stops`, which is left, or the end."""
        nodes: list[Node] = []
        with self._deeper():
            while True:
                self._skip_space()
                part = self._peek()
                if not part or part in stops or (part.startswith("\\\\") and "\\\\" in stops):
                    return Row(tuple(nodes))
                if part in ("^", "_", "'"):
                    nodes.append(self._script(nodes.pop() if nodes else Atom("", "ord")))
                else:
                    nodes.extend(self._node())

    def _script(self, base: Node) -> Script:
        if isinstance(base, Script):
            raise UnsupportedMathsError("double script")
        sup: Row | None = None
        sub: Row | None = None
        while True:
            self._skip_space()
            part = self._peek()
            if part == "'":
                primes = 0
                while self._peek() == "'":
                    self._next()
                    primes += 1
                marks: tuple[Node, ...] = (Atom({2: "″", 3: "‴"}.get(primes, "′" * primes), "ord"),)
                if self._peek() == "^":
                    self._next()
                    marks += self._argument().nodes
                if sup is not None:
                    raise UnsupportedMathsError("double superscript")
                sup = Row(marks)
            elif part == "^" and sup is None:
                self._next()
                sup = self._argument()
            elif part == "_" and sub is None:
                self._next()
                sub = self._argument()
            elif part in ("\\limits", "\\nolimits"):
                self._next()
            elif part in ("^", "_"):
                raise UnsupportedMathsError("double script")
            else:
                return Script(base, sup, sub)

    def _argument(self) -> Row:
        """Parse the argument of a command: a group, or one part."""
        with self._deeper():
            return self._argument_below()

    def _argument_below(self) -> Row:
        self._skip_space()
        part = self._peek()
        if part == "{":
            self._next()
            row = self._row(stops=("}",))
            self._next()
            return row
        if part in ("", "}", "^", "_", "&", "'"):
            raise UnsupportedMathsError("an argument is missing")
        if part[0].isdigit() and len(part) > 1:  # x^23 is x² 3
            self._next()
            self._tokens = [*self._tokens[: self._position], part[1:], *self._tokens[self._position :]]
            return Row((Atom(self._styled(part[0]), "ord"),))
        return Row(tuple(self._node()))

    def _optional(self) -> Row | None:
        """Parse an argument in square brackets, if there is one."""
        self._skip_space()
        if self._peek() != "[":
            return None
        self._next()
        row = self._row(stops=("]",))
        self._next()
        return row

    def _node(self) -> Iterator[Node]:
        part = self._next()
        if part == "{":
            row = self._row(stops=("}",))
            self._next()
            yield row
        elif part == "~":
            yield Atom(" ", "space")
        elif part in ("}", "&", "$", "#", "^", "_"):
            raise UnsupportedMathsError(f"stray {part}")
        elif part.startswith("\\"):
            yield from self._command(part[1:])
        elif part[0].isdigit():
            yield Atom(self._styled(part.replace("{", "").replace("}", "")), "ord")
        else:
            yield Atom("−" if part == "-" else self._styled(part), _PLAIN.get(part, "ord"))

    def _command(self, name: str) -> Iterator[Node]:
        name = name.rstrip("*") if len(name) > 1 else name
        if name in SYMBOLS:
            text, kind = SYMBOLS[name]
            yield Atom(self._styled(text) if kind == "ord" else text, kind)
        elif name in FUNCTIONS:
            yield Atom(name, "op")
        elif name in SPACES:
            if SPACES[name]:
                yield Atom(SPACES[name], "space")
        elif name in IGNORED:
            return
        elif name in ALPHABETS:
            yield from self._with_alphabet(name)
        elif name in _UPRIGHT_COMMANDS:
            yield from self._upright()
        elif name in _TEXT_COMMANDS:
            yield Atom(_plain_text(self._raw_group()), "text")
        elif name == "operatorname":
            yield Atom(_plain_text(self._raw_group()), "op")
        elif name in ACCENTS:
            yield self._accented(name)
        else:
            yield self._structure(name)

    def _structure(self, name: str) -> Node:
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return Fraction(self._argument(), self._argument())
        if name in ("binom", "dbinom", "tbinom"):
            return Binomial(self._argument(), self._argument())
        if name == "sqrt":
            degree = self._optional()
            return Root(self._argument(), degree)
        if name in ("boxed", "fbox"):
            return Boxed(self._argument())
        if name == "left":
            return self._fenced()
        if name == "begin":
            return self._environment()
        if name == "not":
            atom = next(iter(self._argument().nodes), None)
            if isinstance(atom, Atom) and atom.kind == "rel":
                return Atom(unicodedata.normalize("NFC", atom.text + "\u0338"), "rel")
        if name == "pmod":
            return Row((Atom(" ", "space"), Atom("(", "open"), Atom("mod", "bin"), *self._argument().nodes, Atom(")", "close")))
        if name == "tag":
            return Atom(f"  ({_plain_text(self._raw_group())})  ", "text")
        raise UnsupportedMathsError(f"unknown command {name}")

    def _fenced(self) -> Fenced:
        left = self._delimiter()
        body = self._row(stops=("\\right",))
        self._next()
        return Fenced(left, body, self._delimiter())

    def _delimiter(self) -> str:
        self._skip_space()
        part = self._next()
        if part == ".":
            return ""
        if part.startswith("\\"):
            character, _ = SYMBOLS.get(part[1:], ("", ""))
            if not character:
                raise UnsupportedMathsError("unknown bracket")
            return character
        return {"<": "⟨", ">": "⟩"}.get(part, part)

    def _environment(self) -> Node:
        name = self._raw_group()
        plain = name.rstrip("*")
        if plain in ("array", "alignat"):
            self._skip_space()
            columns = self._raw_group()
            if plain == "array" and set(columns) - set("lcr| "):
                raise UnsupportedMathsError("unknown columns")
        if plain in _MATRICES:
            left, right = _MATRICES[plain]
            return Matrix(self._rows(name), left, right, is_cases=plain in ("cases", "rcases"))
        if plain in _ALIGNED:
            rows = self._rows(name)
            if len(rows) == 1 and len(rows[0]) == 1:
                return rows[0][0]
            return Matrix(rows, "", "", is_aligned=True)
        raise UnsupportedMathsError(f"unknown environment {name}")

    # Letters

    def _styled(self, text: str) -> str:
        """Put letters and digits into the alphabet that is in force."""
        return "".join(map(self._styled_letter, text)) if self._alphabet else text

    def _styled_letter(self, letter: str) -> str:
        for index, (first, n_letters) in enumerate((("A", 26), ("a", 26), ("0", 10), ("Α", 25), ("α", 25))):
            position = ord(letter) - ord(first)
            if 0 <= position < n_letters:
                starts = ALPHABETS[self._alphabet]
                if index >= len(starts) or not starts[index]:
                    raise UnsupportedMathsError("the alphabet has no such letters")
                styled = chr(ord(starts[index]) + position)
                return ALPHABET_HOLES.get(styled, styled)
        return letter

    def _with_alphabet(self, name: str) -> Iterator[Node]:
        outer, self._alphabet = self._alphabet, name
        try:
            yield self._argument()
        finally:
            self._alphabet = outer

    def _upright(self) -> Iterator[Node]:
        """Parse `\\mathrm{kg}`: its letters are one word, like a function's name when several."""
        row = self._argument()
        letters = [node.text for node in row.nodes if isinstance(node, Atom) and node.kind == "ord" and node.text.isalpha()]
        if len(letters) == len(row.nodes) > 1:
            yield Atom("".join(letters), "ord")
        else:
            yield row

    def _accented(self, name: str) -> Atom:
        nodes = self._argument().nodes
        if not nodes or not all(isinstance(node, Atom) and node.kind == "ord" for node in nodes):
            raise UnsupportedMathsError("accent on more than letters")
        letters = "".join(node.text for node in nodes if isinstance(node, Atom))
        letters = letters.replace("ı", "i").replace("ȷ", "j")
        if len(letters) > 1 and name not in ("overline", "underline"):
            raise UnsupportedMathsError("accent on several letters")
        return Atom(unicodedata.normalize("NFC", "".join(letter + ACCENTS[name] for letter in letters)), "ord")


def _plain_text(text: str) -> str:
    """Return the text of `\\text{...}`, which may have escaped characters and spacing, and no formula inside."""
    text = re.sub(r"\\([%$#&_{} ])|~", lambda match: match[1] or " ", text)
    if "\\" in text or "$" in text or "^" in text:
        raise UnsupportedMathsError("commands inside a text")
    return re.sub(r"\s+", " ", text.replace("{", "").replace("}", ""))
