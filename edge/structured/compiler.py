"""Constraints compiled for the vocabulary of one model, each once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.errors import BackendUnavailableError
from edge.structured.grammar import explain, ignored_keywords, to_grammar
from edge.structured.matcher import GrammarMatcher
from edge.structured.vocabulary import open_vocabulary

if TYPE_CHECKING:
    from edge.constraint import Constraint
    from edge.prompt.tokenizers import Tokenizer

__all__ = ["Compiled", "Compiler"]

_MOST_KEPT = 64
# Of llguidance, so that no grammar holds up the other replies: fuel of the lexer and Earley items, for one token. They are
# counted, so the same grammar fails at the same place on every device. Its defaults are twice as high.
_STEP_LEXER_FUEL, _STEP_MAX_ITEMS = 100_000, 25_000


@dataclass(frozen=True, slots=True)
class Compiled:
    """A constraint that can be enforced.

    Attributes:
        constraint: the constraint.
        ignored: keywords of its schema that are not enforced, since it is not strict.
    """

    constraint: Constraint
    ignored: tuple[str, ...]
    _native: Any
    _vocabulary: Any
    _n_vocab: int

    def matcher(self) -> GrammarMatcher:
        """Return a matcher for one reply."""
        return GrammarMatcher(self._native.deep_copy(), self._n_vocab, self.constraint.noun)

    def matcher_behind(self, begun: bytes) -> GrammarMatcher | None:
        """Return a matcher for a reply that has begun; None if the grammar does not have that."""
        tokens = self._vocabulary.greedy_tokenize(begun.decode("utf-8", "replace")) if begun else []
        matcher = self.matcher()
        if matcher.n_valid(tokens) < len(tokens):
            return None
        for token in tokens:
            matcher.accept(token)
        return matcher


class Compiler:
    """Compiles constraints, and keeps the newest. Thread-safe; for any thread but the engine's, since it takes up to a second.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabulary: Any = None
        self._compiled: OrderedDict[Constraint, Compiled] = OrderedDict()

    def compile(self, constraint: Constraint) -> Compiled:
        """Return a constraint that can be enforced.

        Raises:
            ConstraintError: it is wrong, too large, or beyond what can be enforced; a keyword of a schema is named.
            BackendUnavailableError: llguidance is not installed.
            UnsupportedError: the model has no token that ends a reply.
            BackendError: the model is closed.
        """
        with self._lock:
            known = self._compiled.get(constraint)
            if known is None:
                known = self._compiled[constraint] = self._compile(constraint)
                if len(self._compiled) > _MOST_KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(constraint)
            return known

    def _compile(self, constraint: Constraint) -> Compiled:
        try:
            from llguidance import LLMatcher
            from llguidance._lib import LLParserLimits
        except ImportError as error:
            raise BackendUnavailableError(
                f"The package llguidance, which enforces schemas and grammars, cannot be loaded: {error}.",
                "Install it: pip install llguidance",
            ) from error
        grammar = to_grammar(constraint)
        if self._vocabulary is None:
            self._vocabulary = open_vocabulary(self._tokenizer)
        limits = LLParserLimits(step_lexer_fuel=_STEP_LEXER_FUEL, step_max_items=_STEP_MAX_ITEMS, verbose_errors=False)
        native = LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        if native.is_error():
            raise explain(constraint, native.get_error())
        ignored = ignored_keywords(native.get_grammar_warnings())
        return Compiled(constraint, tuple(ignored), native, self._vocabulary, self._tokenizer.n_vocab)
