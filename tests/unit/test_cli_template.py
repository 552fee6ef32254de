"""The Go template subset of `--format`: what `docker` prints for the same (see also tests/golden/test_cli_requests.py)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.client import Failure
from cli.evaluate import Template, go_quote
from cli.template import TemplateError

DATA: dict[str, Any] = {
    "Name": "web", "N": 3, "Yes": True, "None": None, "Empty": [], "List": ["a", "b"], "Map": {"b": 2, "a": 1},
    "Deep": {"X": {"Y": [{"Z": "z"}]}},
    "F": 1.5,
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("{{.Name}}", "web"),
        ("{{ .Name }} {{.N}} {{.Yes}} {{.F}}", "web 3 true 1.5"),
        ("a {{- .Name -}} b", "awebb"),
        ("{{/* nothing */}}x{{- /* nothing */ -}} y", "xy"),
        ("{{.List}} {{.Map}} {{.Empty}}", "[a b] map[a:1 b:2] []"),
        ("{{.None}}", "<no value>"),
        ("{{json .Deep}}", '{"X":{"Y":[{"Z":"z"}]}}'),
        ("{{(index .Deep.X.Y 0).Z}}", "z"),
        ('{{index .Map "b"}} {{index .Map "zz"}} {{index .List 1}}', "2 <no value> b"),
        ("{{range .List}}<{{.}}>{{end}}", "<a><b>"),
        ("{{range $i, $e := .List}}{{$i}}{{$e}}{{end}}", "0a1b"),
        ("{{range $k, $v := .Map}}{{$k}}={{$v}};{{end}}", "a=1;b=2;"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{range $e := .List}}{{$e}}{{$.Name}}{{end}}", "awebbweb"),
        ("{{if .Yes}}y{{end}}{{if .Empty}}n{{else}}e{{end}}", "ye"),
        ("{{if eq .N 4}}four{{else if eq .N 3}}three{{else}}other{{end}}", "three"),
        ("{{with .Deep.X}}{{len .Y}}{{end}}{{with .None}}x{{else}}n{{end}}", "1n"),
        ("{{with $x := .Name}}{{$x}}{{end}}", "web"),
        ("{{$x := 1}}{{if .Yes}}{{$x = 2}}{{end}}{{$x}}", "2"),
        ('{{eq .Name "a" "web"}} {{ne .N 3}} {{lt .N 4}} {{le .N 3}} {{gt .N 4}} {{ge .N 3}}', "true false true true false true"),
        ("{{and .Yes .Name}} {{or .Empty .Name}} {{not .Yes}} {{and .Empty .Missing}}", "web web false []"),
        ("{{.Name | upper | printf \"%s!\"}}", "WEB!"),
        ('{{printf "%s %d %v %q %t %5s|%-5s|%%" .Name .N .List .Name .Yes .Name .Name}}', 'web 3 [a b] "web" true   web|web  |%'),
        ('{{join .List ", "}} {{split "a,b" ","}} {{title "hello you"}} {{lower "ABC"}}', "a, b [a b] Hello You abc"),
        ('{{pad .Name 1 2}}|{{truncate .Name 2}}|{{len .Name}}|{{len .Map}}', " web  |we|3|2"),
        ("{{println .Name .N}}", "web 3\n"),
        ("{{print .Name .N .N .Name}}", "web3 3web"),
        ("{{`raw\\n`}}{{\"q\\n\\u00fc\"}}{{'a'}}", "raw\\nq\nü97"),
        ("{{1}} {{-2}} {{1.5}} {{0x10}} {{true}}", "1 -2 1.5 16 true"),
        ('{{slice .Name 1 2}} {{html "<a>"}} {{urlquery "a b"}}', "e &lt;a&gt; a+b"),
        ("{{ $x := .List }}{{ range $x }}{{ . }}{{ end }}", "ab"),
    ],
)
def test_renders(template: str, text: str) -> None:
    assert Template(template).run(DATA) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{", "template: :1: unclosed action"),
        ("{{.Name", "template: :1: unclosed action"),
        ("{{if .Yes}}", "template: :1: unexpected EOF"),
        ("{{end}}", "template: :1: unexpected {{end}}"),
        ("{{nope}}", 'template: :1: function "nope" not defined'),
        ("{{$x}}", 'template: :1: undefined variable "$x"'),
        ('{{"abc}}', "template: :1: unterminated quoted string"),
        ("{{}}", "template: :1: missing value for command"),
        ("\n{{.Name | }}", "template: :2: missing value for command"),
        ("{{(.Name}}", "template: :1: unclosed left paren"),
        ("{{/* x", "template: :1: unclosed comment"),
    ],
)
def test_refuses_at_parsing(template: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(template)
    assert caught.value.text == message


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{.Missing}}", 'template: :1:2: executing "" at <.Missing>: map has no entry for key "Missing"'),
        ("{{.None.X}}", 'template: :1:7: executing "" at <.None.X>: nil pointer evaluating interface {}.X'),
        ("\n {{.Name.X}}", 'template: :2:8: executing "" at <.Name.X>: can\'t evaluate field X in type string'),
        ("{{index .List 9}}", 'template: :1:2: executing "" at <index .List 9>: error calling index: reflect: slice index out of range'),
        ("{{eq .Name .N}}", 'template: :1:2: executing "" at <eq .Name .N>: error calling eq: incompatible types for comparison'),
        ("{{upper .N}}", 'template: :1:2: executing "" at <upper>: wrong type for value; expected string; got number'),
    ],
)
def test_refuses_at_running(template: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(template).run(DATA)
    assert caught.value.text == message


@given(st.text(alphabet="{}.()|$\"'`-/* abNEx10ifrangeend=:,\n", max_size=40))
def test_any_text_renders_or_is_refused(text: str) -> None:
    try:
        Template(text).run(DATA)
    except Failure:
        pass


def test_quote() -> None:
    assert go_quote('a"\\\n\x01ü\u200b') == '"a\\"\\\\\\n\\x01ü\\u200b"'
