"""Rendering: no value becomes syntax, wherever an administrator prints it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import UserError
from tests.unit.templates.conftest import Say

HOSTILE = 'it\'s "$(touch x)" `id` \\ \n#SBATCH --nodes=9\n\t; rm -rf / & é ☃'
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)


def bash(script: str) -> str:
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, timeout=20)
    return done.stdout.decode()


@pytest.mark.parametrize(
    "text",
    [
        "printf %s {{ x }}",
        "printf '%s' {{ x }}",
        'printf "%s" {{ x }}',
        'y={{ x }}; printf %s "$y"',
        "printf %s $(printf %s {{ x }}.) | sed 's/[.]$//' # {{ 'a' | comment }}",
        'printf %s "$(printf %s {{ x }})"',
        "{% set y %}{{ x }}{% endset %}printf %s {{ y }}",
        "{% macro m(v) %}{{ v }}{% endmacro %}printf %s {{ m(x) }}",
        "{% for v in [x] %}printf %s {{ v }}{% endfor %}",
        "{% block b %}printf %s {{ x }}{% endblock %}",
        "printf %s {% print x %}",
        "case {{ x }} in a) ;; *) printf %s {{ x }} ;; esac",
        "cat <<'END' >/dev/null\n' \" {{ '{' }} $(\nEND\nprintf %s {{ x }}".replace(
            "{{ '{' }} ", ""
        ),
    ],
)
@pytest.mark.parametrize(
    "value", ["plain", "a b", "it's", '"', "$(echo no)", "`echo no`", "\\", "*"]
)
def test_a_value_is_one_word(rendered: Say, text: str, value: str) -> None:
    if text.startswith("printf %s $("):  # not quoted by its author: split by the shell
        assert rendered(text, x=value)
        return
    assert bash(rendered(text, x=value)) == value


@given(value=texts)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_is_one_word(rendered: Say, value: str) -> None:
    assert bash(rendered("printf %s {{ x }}; : {{ x }}", x=value)) == value


@given(value=texts)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_stays_in_its_comment(rendered: Say, value: str) -> None:
    text = rendered("#!/bin/bash\n#{{ x | comment }}\n# {{ x | comment }}\nprintf ok\n", x=value)
    assert bash(text) == "ok"
    assert text.count("\n") == 4
    assert not any(line.startswith("#SBATCH") for line in text.split("\n"))


def test_a_comment_never_becomes_a_directive(rendered: Say) -> None:
    text = rendered("#{{ x | comment }}\n# a {{ x | comment }}\n", x="SBATCH --nodes=9\n#PBS -l a")
    assert text == "# SBATCH --nodes=9 #PBS -l a\n# a SBATCH --nodes=9 #PBS -l a\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('echo "{{ x }}"', "t.j2:2: the value stands in double quotes"),
        ("echo '{{ x }}'", "t.j2:2: the value stands in single quotes"),
        ("echo $'{{ x }}'", "single quotes"),
        ("echo `echo {{ x }}`", "backticks"),
        ('echo "`echo {{ x }}`"', "backticks"),
        ("cat <<END\n{{ x }}\nEND\n", "t.j2:3: the value stands in a here-document"),
        ("cat <<-'END'\n\t{{ x }}\n\tEND\n", "here-document"),
        ("(( y = {{ x }} ))", "arithmetic"),
        ('echo "$(( {{ x }} + 1 ))"', "arithmetic"),
        ("# {{ x }}", "stands in a comment"),
        ("echo a # {{ x }}", "stands in a comment"),
        ("#SBATCH --account={{ x }}", "t.j2:2: the value stands in a directive"),
        ("echo {{ x | directive }}", "has | directive, but stands in a word of the shell"),
        ("echo {{ x | comment }}", "has | comment, but stands in"),
        ("#SBATCH --account={{ x | comment }}", "stands in a directive"),
        ("# {{ x | directive }}", "stands in a comment"),
        ("{% set y = 'a' ~ (x | directive) %}#SBATCH {{ y }}", "stands in a directive"),
    ],
)
def test_where_quoting_would_not_help_a_value_is_refused(
    refused: Say, text: str, what: str
) -> None:
    found = refused(text, x="v")
    assert what in found
    assert "hint:" in found


@pytest.mark.parametrize("value", ["", " ", "a b", "a\n", "a#b", "'", '"', "a\\b", "é", "$x", "`"])
def test_a_directive_takes_one_plain_token(refused: Say, value: str) -> None:
    found = refused("#SBATCH --account={{ x | directive }}", x=value)
    assert "t.j2:2: the value" in found
    assert "cannot stand in a directive" in found


@pytest.mark.parametrize("value", ["a100&ib", "[r1|r2]*2", "gpu[3-5],c1", "%j", "user@x", 4])
def test_a_directive_keeps_slurms_own_signs(rendered: Say, value: object) -> None:
    assert rendered("#SBATCH --x={{ x | directive }}", x=value) == f"#SBATCH --x={value}"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{{ partitoin }}", "t.j2:2: 'partitoin' is undefined\n  hint: did you mean partition?"),
        ("\n\n{{ zz }}", "t.j2:4: 'zz' is undefined\n  hint: there are: block, items, none, part"),
        ("{{ block.zz }}", "has no attribute 'zz'"),
        ("{{ partition | safe }}", "t.j2:2: No filter named 'safe'"),
        ("{{ partition | raw }}", "No filter named 'raw'"),
        ("{{ partition | tojson }}", "No filter named 'tojson'"),
        ("{{ items }}", "the value is a list or a mapping"),
        ("{{ block }}", "the value is a list or a mapping"),
        ("{{ none }}", "the value has no value"),
        ("{{ partition.__class__.__mro__ }}", "t.j2:2: "),
        ("{{ ''.__class__ }}", "unsafe"),
        ("{{ items.append(1) }}", "has no attribute 'append'"),
        ("{{ block.update(a=1) }}", "has no attribute 'update'"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ 1 // 0 }}", "t.j2:2: "),
        ("{{ partition + 1 }}", "t.j2:2: "),
        ("{{ range(10 ** 9) | list | length }}", "t.j2:2: "),
        ("{{ block.a.b.c }}", "t.j2:2: "),
        ("#SBATCH --x={{ zz | directive }}", "t.j2:2: 'zz' is undefined"),
        ("{{ }}", "the value is a list"),
    ],
)
def test_faults_name_the_line_and_the_cure(refused: Say, text: str, what: str) -> None:
    found = refused(text, partition="a", items=[1], block={"a": 1}, none=None)
    assert what in found


def test_a_fault_in_another_file_is_placed_there(rendered: Say, tmp_path: Any) -> None:
    (tmp_path / "inc.j2").write_text("\n\n{{ zz }}\n")
    with pytest.raises(UserError, match=r"inc\.j2:3: 'zz' is undefined"):
        rendered('{% include "inc.j2" %}')


def test_values_cannot_be_changed(refused: Say) -> None:
    assert "cannot assign attribute" in refused("{% set block.a = 2 %}", block={"a": 1})
    assert "t.j2:2" in refused("{% do block.update(a=1) %}", block={"a": 1})


def test_numbers_may_stand_in_arithmetic(rendered: Say) -> None:
    assert bash(rendered("echo $(( {{ x }} + 1 ))", x=4)) == "5\n"


def test_booleans_and_numbers(rendered: Say) -> None:
    assert rendered("{{ a }} {{ b }} {{ c }}", a=True, b=7, c=1.5) == "true 7 1.5"


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_what_no_word_can_hold_is_refused(refused: Say, value: str) -> None:
    assert "no shell word can hold" in refused("echo {{ x }}", x=value)


# --- manifests

plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | texts | st.floats(allow_nan=False, width=32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(value=plain_json.filter(lambda v: v not in (float("inf"), float("-inf"))))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_is_one_value_of_the_manifest(rendered: Say, value: Any) -> None:
    if "Infinity" in json.dumps(value):
        return
    text = rendered(
        "a: {{ x }}\nb:\n  - {{ x }}\n  - [1, {{ x }}, {{ x }}]\n  - {c: {{ x }}}\n", "k8s", x=value
    )
    found = yaml.safe_load(text)
    assert found == {"a": value, "b": [value, [1, value, value], {"c": value}]}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: x-{{ x }}", "stands in a part of a text"),
        ('a: "{{ x }}"', "stands in a part of a text"),
        ("a: {{ x }}-y", "stands in a part of a text"),
        ("a: {{ x }} y", "stands in a part of a text"),
        ("# {{ x }}", "stands in a comment"),
        ("a: {{ x | comment }}", "has | comment"),
        ("a: {{ x | directive }}", "No filter named 'directive'"),
    ],
)
def test_half_a_value_is_refused_in_a_manifest(refused: Say, text: str, what: str) -> None:
    assert what in refused(text, "k8s", x="v")


def test_texts_are_joined_inside_the_expression(rendered: Say) -> None:
    text = rendered("a: {{ 'x-' ~ x }}  # {{ x | comment }}\n", "k8s", x="b: c\n#")
    assert yaml.safe_load(text) == {"a": "x-b: c\n#"}
