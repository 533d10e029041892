"""Templates by strangers: what transformers offers them works, what would hurt is refused, and nothing runs for ever."""

from __future__ import annotations

from datetime import datetime

import pytest

from edge.errors import TemplateError
from edge.prompt.budget import Limits
from edge.prompt.sandbox import BoundedTemplate, plain_data

# Small, so that the tests end fast; a template that needs much is refused whatever the limits.
SMALL = Limits(steps=200_000, chars=1_000_000, chars_per_input_char=8, seconds=60.0)


def run(source, limits=SMALL, **variables):
    return BoundedTemplate(source, limits=limits, now=lambda: datetime(2025, 3, 4)).render(plain_data(variables))


# -- what templates may rely on


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("  {% if true %}\nyes\n  {% endif %}\nend", "yes\nend"),
        ("{% for i in [0, 1, 2, 3] %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
         "{% endfor %}", "02"),
        ("{{ {'b': '<é>', 'a': [1, none, true]}|tojson }}", '{"b": "<é>", "a": [1, null, true]}'),
        ("{{ {'b': 1, 'a': 2}|tojson(indent=2, sort_keys=true) }}", '{\n  "a": 2,\n  "b": 1\n}'),
        ("{{ [1, 2]|tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{{ strftime_now('%d %b %Y') }}", "04 Mar 2025"),
        ("a{% generation %}b{{ 'c' }}{% endgeneration %}d", "abcd"),
        ("{% set ns = namespace(n=0, s='') %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ dict(a=1, b=2)['b'] }}{{ dict([('x', 3)]).x }}", "23"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') ~ f(1) }}", "[a][1]"),
        ("{{ missing }}{{ missing is defined }}", "False"),
        ("{{ m['text'] ~ m.text }}{{ m.get('no', 'd') }}{% for k, v in m.items() %}{{ k }}={{ v }}{% endfor %}", "ttdtext=t"),
        ("{{ ['a', 'b']|join(', ') }}{{ [{'x': 1}, {'x': 2}]|map(attribute='x')|join('-') }}", "a, b1-2"),
        ("{{ [{'x': 1}, {'x': 2}]|join('+', attribute='x') }}", "1+2"),
        ("{{ 'a-b'.split('-')[1] }}{{ 'x%sy' % 1 }}{{ '{}{}'.format(1, 'b') }}", "bx1y1b"),
        ("{{ '{{\"a\": {:>3}}}'.format(2) }}{{ '%05.1f'|format(1.25) }}", '{"a":   2}001.2'),
        ("{{ 'abc'.replace('b', 'xx') }}{{ 'a b'|replace(' ', '_') }}{{ ', '.join(['a', 'b']) }}", "axxca_ba, b"),
        ("{{ ' a '|trim }}{{ 'a'|upper }}{{ 'x\ny'|indent(2) }}{{ [3, 1]|sort|first }}{{ '12'|int + 1 }}", "aAx\n  y113"),
        ("{{ messages[::-1][0] }}{{ messages[1:]|length }}{{ (messages + ['c'])[-1] }}{{ 2 * 3 }}{{ 'ab' * 2 }}", "b1c6abab"),
        ("{% set x %}cap{{ 1 }}{% endset %}{{ x|length }}{% macro f() %}<{{ caller('y') }}>{% endmacro %}"
         "{% call(z) f() %}{{ z }}{% endcall %}", "4<y>"),
        ("{{ 'a' in 'abc' and 'a' in ['a'] and 'x' not in {'y': 1} }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 3 }}{{ 1 / 2 }}",
         "True3380.5"),
    ],
)  # fmt: skip
def test_what_transformers_offers(source, expected):
    assert run(source, messages=["a", "b"], m={"text": "t"}) == expected


def test_a_refusal_says_the_templates_words():
    with pytest.raises(TemplateError, match="Conversation roles must alternate"):
        run("{{ raise_exception('Conversation roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    ["{{ 1 + }}", "{% for %}", "{% if x %}", "{{ x|no_such_filter }}", "{% include 'x' %}", "{{ 1/0 }}", "{{ x.y.z }}"],
)
def test_broken_templates_are_template_errors(source):
    with pytest.raises(TemplateError):
        run(source)


# -- what would hurt


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}{{ ''|attr('__class__') }}{{ (''|attr('__class__')).mro() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ raise_exception.__code__.co_code }}",
        "{{ strftime_now.__closure__[0] }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ '{x.__class__.__mro__}'.format_map({'x': ''}) }}",
        "{% set f = 'a'.format %}{{ f.__self__.__class__.mro() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(_x=1)._x }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ dict.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ joiner.__init__.__globals__.os }}",
        "{{ lipsum.__globals__.os.system('true') }}",
        "{{ messages.append('x') }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ messages.clear() }}",
        "{{ (1).to_bytes(4, 'big') }}",
        "{{ 'x'.encode() }}",
        "{{ 'x'.zfill(10) }}",
        "{% for x in [1] %}{{ loop.__class__.__init__.__globals__.sys }}{% endfor %}",
        "{% macro f() %}{% endmacro %}{{ f._environment.loader }}{{ f.__class__.__init__.__globals__ }}",
    ],
)
def test_hostile_attributes_give_nothing(source):
    messages = [{"role": "user", "content": "hi"}]
    try:
        text = run(source, messages=messages)
    except TemplateError:
        return
    # Where Jinja answers with an undefined value instead of an error, nothing comes out.
    assert text.strip() == ""


@pytest.mark.parametrize(
    "source",
    [
        # for ever, or nearly
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}",
        "{% for x in range(10**9) %}{% endfor %}",
        # too much text
        "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% set x = 'x' * 99999 %}{% for a in range(99999) %}{{ x }}{% endfor %}",
        "{{ 'x' * 10**9 }}",
        "{{ 10**9 * 'x' }}",
        "{{ ['x'] * 10**9 }}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('x', 'xx') %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x|replace('', 'xx') %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = '%s%s'|format(ns.x, ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='xx') %}{% for i in range(60) %}"
        "{% set ns.x = f(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ ns.x|tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x).values() %}{% endfor %}"
        "{{ ns.x == ns.x|list }}",
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '%(a)999999999s' % {'a': 1} }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
        "{{ 'x'|center(999999999) }}",
        "{{ 'x'|indent(999999999, true) }}",
        "{{ [1]|batch(999999999, 'x')|list }}",
        "{{ [1]|tojson(indent=999999999) }}",
        "{{ lipsum(999999) }}",
        # huge numbers
        "{{ 9**99999 }}",
        "{{ 9**99**99**99 }}",
        "{% set ns = namespace(x=99999) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
        "{{ ('9' * 99999)|int }}",
        # slow searches and sums
        "{% set x = 'a' * 90000 %}{{ x.rfind('b' + x) }}",
        "{% set x = 'a' * 90000 %}{{ x.strip(x) }}",
        "{{ [[1], [2]]|sum(start=[]) }}",
    ],
)  # fmt: skip
def test_hostile_work_is_stopped(source):
    with pytest.raises(TemplateError):
        run(source)


def test_the_clock_is_a_limit_too():
    limits = Limits(steps=10**9, chars=10**9, seconds=0.0)
    with pytest.raises(TemplateError, match="too long"):
        run("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", limits)


def test_limits_grow_with_what_is_given():
    source = "{% for m in messages %}{{ m|trim }}{{ m }}{% endfor %}"
    messages = ["y" * 1000] * 500
    assert len(run(source, Limits(chars=10, chars_per_input_char=8), messages=messages)) == 1_000_000
    with pytest.raises(TemplateError, match="too much text"):
        run(source, Limits(chars=10, chars_per_input_char=1), messages=messages)


TOO_DEEP = {
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "blocks": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "signs": "{{ " + "-" * 50_000 + "1 }}",
    "sums": "{{ x" + "+x" * 20_000 + " }}",
    "attributes": "{{ x" + ".y" * 20_000 + " }}",
    "filters": "{{ x" + "|trim" * 20_000 + " }}",
    "length": "{{ 1 }}" * 100_000,
}


@pytest.mark.parametrize("name", TOO_DEEP)
def test_sources_that_would_break_a_compiler(name):
    with pytest.raises(TemplateError):
        run(TOO_DEEP[name], x="y")


def test_a_rendering_leaves_nothing_behind():
    source = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    template = BoundedTemplate(source)
    variables = {"messages": [{"role": "user", "content": "hi"}]}
    assert [template.render(variables) for _ in range(3)] == ["1", "1", "1"]
    assert variables == {"messages": [{"role": "user", "content": "hi"}]}


def test_many_threads_share_a_template():
    from concurrent.futures import ThreadPoolExecutor

    template = BoundedTemplate("{% for m in messages %}{% for c in m %}{{ c }}{% endfor %}|{% endfor %}")
    texts = [[f"text {n}"] * (n % 7) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        rendered = list(pool.map(lambda messages: template.render({"messages": messages}), texts))
    assert rendered == ["".join(f"{text}|" for text in messages) for messages in texts]


class Loud(str):
    """A str with a method that a template should not find."""

    def shout(self):
        return "!"


def test_templates_meet_plain_data_only():
    assert type(plain_data({"x": [Loud("a")]})["x"][0]) is str
    assert plain_data(({"a": (1, 2.5, None, True)},)) == [{"a": [1, 2.5, None, True]}]
    with pytest.raises(TypeError, match="object"):
        plain_data({"x": object()})
