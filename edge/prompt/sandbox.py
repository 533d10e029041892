"""Runs a chat template from a model file within limits, with the functions that transformers offers templates.

A template is a program by a stranger. Jinja's immutable sandbox keeps it from Python's internals and from changing its input;
it does not keep it from running for ever or from filling the memory. So every loop turn, call, operator and filter of a
template passes through a budget of steps, of characters made and of time (`edge.prompt.budget`).

Source: transformers `utils/chat_template_utils.py` for what templates may rely on (trim_blocks, lstrip_blocks, loop controls,
the generation tag, tojson, raise_exception, strftime_now, the plain dict and namespace).

This module imports jinja2 when it is imported; `edge.prompt.template` imports it when a template is first needed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from edge.errors import TemplateError
from edge.prompt.budget import (
    Budget,
    LimitError,
    Limits,
    budget,
    call_method,
    check_binop,
    check_filter,
    join,
    pay,
    price_format,
)

__all__ = ["BoundedTemplate", "Limits", "plain_data"]


_TEXT_METHODS = """capitalize casefold count endswith find format format_map index isalnum isalpha isascii isdecimal isdigit
    isidentifier islower isnumeric isprintable isspace istitle isupper join lower lstrip partition removeprefix removesuffix
    replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper"""
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_TEXT_METHODS.split()),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    int: frozenset(),
    float: frozenset(("is_integer",)),
}
"""Methods that templates may call on values."""

_DROPPED_FILTERS = ("pprint", "random", "urlize", "wordwrap", "xmlattr")  # slow or unstable, and no chat template uses them


def _guard_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    n_skip = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment, context or eval context comes first

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        options = [*args[n_skip + 1 :], *kwargs.values()]
        if name == "replace" and "old" in kwargs:
            options = [kwargs["old"], kwargs.get("new", ""), *options]
        check_filter(name, args[n_skip] if len(args) > n_skip else None, options)
        return pay(function(*args, **kwargs))

    return guarded


@jinja2.pass_environment
def _join_filter(environment: jinja2.Environment, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return join(value, str(d))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters; models were trained without that.
    if indent is not None and (indent > 32 if isinstance(indent, int) else len(indent) > 32):
        raise LimitError("it indents JSON by more than 32")
    budget.get().measure(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise TemplateError(
        f"The model's chat template does not accept these messages: {message}",
        "Start a new conversation, or use another model.",
    )


class _PlainDict:
    """`dict` for templates: makes dicts without being the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _PlainNamespace(Namespace):
    """`namespace` for templates, without names that begin with an underscore and lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # so that `namespace(self=...)` works
        attributes = dict(*rest, **kwargs)
        for name, value in attributes.items():
            _PlainNamespace._check(name, value)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _PlainNamespace._check(name, value)  # Namespace looks every name up among its values
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: object, value: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace takes no attribute {name!r}")
        if not isinstance(value, str):
            budget.get().measure(value)


class _Generation(Extension):
    """{% generation %}...{% endgeneration %} marks text of the model; only training looks at the marks."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_pass_through"), [], [], body).set_lineno(line)

    def _pass_through(self, caller: Macro) -> str:
        return str(caller())


class _Instrument(NodeTransformer):
    """Puts the budget into the loops, `~`, lists and dicts of a parsed template."""

    def _call(self, name: str, args: list[nodes.Expr], line: int) -> nodes.Call:
        function = nodes.EnvironmentAttribute(name).set_lineno(line)
        return cast(nodes.Call, nodes.Call(function, args, [], None, None).set_lineno(line))

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("edge_step", [], node.lineno)).set_lineno(node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return self._call("edge_concat", list(node.nodes), node.lineno)

    def _visit_container(self, node: Any) -> Any:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":
            return node  # names that are assigned to, not values
        return self._call("edge_pay", [node], node.lineno)

    visit_List = visit_Dict = visit_Tuple = _visit_container


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))
    edge_pay = staticmethod(pay)

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        filters = {**self.filters, "tojson": _to_json, "join": _join_filter}
        self.filters = {
            name: _guard_filter(name, function) for name, function in filters.items() if name not in _DROPPED_FILTERS
        }
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=lambda format: now().strftime(str(format)[:1000]),
            dict=_PlainDict(),
            namespace=_PlainNamespace,
        )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        return tree

    @staticmethod
    def edge_step() -> None:
        budget.get().step()

    @staticmethod
    def edge_concat(*parts: object) -> str:
        return join(parts)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join the output of a macro, a block or a captured {% set %}."""
        return join(parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_binop(operator, left, right)
        return self.binop_table[operator](left, right)

    # Double underscores as in Jinja, so that templates may name keywords as they like.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget.get().step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            result = call_method(owner, __obj.__name__, args)
            if result is not None:
                return result
        return pay(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        function = super().wrap_str_format(value)
        if function is None:
            return None

        def guarded(*args: Any, **kwargs: Any) -> str:
            budget.get().spend(price_format(value.__self__, [*args, *kwargs.values()]))
            return function(*args, **kwargs)

        return guarded

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        allowed = next((_METHODS[kind] for kind in type(obj).__mro__ if kind in _METHODS), None)
        if allowed is not None and attr not in allowed:
            return False
        return super().is_safe_attribute(obj, attr, value)


def plain_data(value: Any) -> Any:
    """Copy `value` as JSON's types only, so that a template meets no object with methods of its own.

    Raises:
        TypeError: something in it is none of dict, list, tuple, str, int, float, bool, None.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"A template takes plain data (text, numbers, lists, dicts), not {type(value).__name__}.")


class BoundedTemplate:
    """A compiled chat template. Thread-safe.

    Args:
        source: Jinja source.
        limits: of a rendering.
        now: the clock behind strftime_now.

    Attributes:
        literals: the texts written in the template itself.
        probes: those of them that it compares values with or hands to methods, as in `'</think>' in content`.

    Raises:
        TemplateError: the source is too long, or Jinja cannot compile it.
    """

    def __init__(self, source: str, *, limits: Limits | None = None, now: Callable[[], datetime] = datetime.now) -> None:
        self._limits = limits or Limits()
        if len(source) > self._limits.source_chars:
            raise TemplateError(
                f"The model's chat template has {len(source):,} characters; {self._limits.source_chars:,} is the limit."
            )
        environment = _BoundedEnvironment(now)
        # Constants are folded while compiling, with the guarded filters.
        token = budget.set(Budget(self._limits, len(source)))
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(tree)
        except Exception as error:  # Jinja's errors, and Python's where its generated code is too deep
            raise TemplateError(f"The model's chat template cannot be compiled: {_describe(error)}") from error
        finally:
            budget.reset(token)
        self.literals = frozenset(
            [node.data for node in tree.find_all(nodes.TemplateData)] + _constants(tree.find_all(nodes.Const))
        )
        self.probes = frozenset(
            text
            for node in tree.find_all((nodes.Compare, nodes.Call))
            if isinstance(node, nodes.Compare) or isinstance(node.node, nodes.Getattr)  # type: ignore[attr-defined]
            for text in _constants(node.find_all(nodes.Const))
        )

    def render(self, variables: Mapping[str, Any]) -> str:
        """Run the template.

        Args:
            variables: its input, as plain_data() makes it.

        Raises:
            TemplateError: the template called raise_exception (the message holds its words), failed, or exceeded the limits.
        """
        n_input_chars = Budget(Limits(chars=2**62, steps=2**62)).measure(variables)
        left = Budget(self._limits, n_input_chars)
        token = budget.set(left)
        pieces = []
        try:
            for piece in self._template.generate(dict(variables)):
                left.step()
                left.spend(len(piece))
                pieces.append(piece)
        except TemplateError:
            raise
        except LimitError as error:
            raise TemplateError(f"The model's chat template was stopped: {error}.") from error
        except Exception as error:
            raise TemplateError(f"The model's chat template failed: {_describe(error)}") from error
        finally:
            budget.reset(token)
        return "".join(pieces)


def _constants(found: Iterable[nodes.Const]) -> list[str]:
    return [node.value for node in found if isinstance(node.value, str)]


def _describe(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error)[:500] or type(error).__name__
