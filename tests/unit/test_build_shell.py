"""Substitution in the words of a Dockerfile. The table was compared with BuildKit, word for word."""

from __future__ import annotations

import pytest

from builder.language.glob import Pattern
from builder.language.shell import SubstitutionError, Words, document

ENV = {"a": "1 2", "p": "/usr/local/bin/foo.tar.gz", "e": "", "s": "a*b*c", "n": "x\\y", "u": "äöü.x"}


@pytest.mark.parametrize(
    ("word", "result"),
    [
        ("$a", "1 2"), ("${a}", "1 2"), ('"$a"', "1 2"), ("'$a'", "$a"), (r"\$a", "$a"), (r'"\$a"', "$a"), ("a$", "a$"), ("$", "$"),
        ("${a:-b}", "1 2"), ("${z:-b c}", "b c"), ('"${z:-b c}"', "b c"), ("${z:-$a}", "1 2"), ("${z:-${y:-deep}}", "deep"), ("${z-}", ""),
        ("${e:-x}", "x"), ("${e-x}", ""), ("${a:+x}", "x"), ("${e:+x}", ""), ("${e+x}", "x"), ("${z+x}", ""), ("${a:?m}", "1 2"),
        ("${z:-'q w'}", "q w"), ('"${z:-"q"}"', "q"), ("${z:-\\}}", "}"), ("${z:-a\\ b}", "a b"),
        ("${p#*/}", "usr/local/bin/foo.tar.gz"), ("${p##*/}", "foo.tar.gz"), ("${p%.*}", "/usr/local/bin/foo.tar"),
        ("${p%%.*}", "/usr/local/bin/foo"), ("${p%/*}", "/usr/local/bin"), ("${p#/usr}", "/local/bin/foo.tar.gz"), ("${p#usr}", ENV["p"]),
        ("${p%bar}", ENV["p"]), ("${p##}", ENV["p"]), ("${p:#*/}", "usr/local/bin/foo.tar.gz"), ("${p:##*/}", "foo.tar.gz"),
        ("${p#${z:-/usr}}", "/local/bin/foo.tar.gz"), ('${p#"/usr"}', "/local/bin/foo.tar.gz"), ("${s#*\\*}", "b*c"), ("${s%\\**}", "a*b"),
        ("${u%.?}", "äöü"), ("${u#?}", "öü.x"), ("${n#x\\\\}", "y"),
        ("${p/usr/opt}", "/opt/local/bin/foo.tar.gz"), ("${p//\\//_}", "_usr_local_bin_foo.tar.gz"),
        ("${p//o/0}", "/usr/l0cal/bin/f00.tar.gz"), ("${p//*/x}", "x"), ("${p//?/x}", "x" * 25), ("${p/foo*/x}", "/usr/local/bin/x"),
        ("${p/o/0}", "/usr/l0cal/bin/foo.tar.gz"), ("${p/u*r/X}", "/X.gz"), ("${p//[ou]/X}", ENV["p"]),
        ("${s//\\*/-}", "a-b-c"), ("${n/\\\\/Z}", "xZy"), ('${a/1/"q q"}', "q q 2"),
        ("${p///x}", "x/xuxsxrx/xlxoxcxaxlx/xbxixnx/xfxoxox.xtxaxrx.xgxzx"), ("${p/./$1}", "/usr/local/bin/footar.gz"),
        ("${p/\\//\\/\\/}", "\\/\\/usr/local/bin/foo.tar.gz"), ("${z/a/b}", ""),
        ("$$", ""), ("$1", ""), ("$12x", "x"), ("${1}", ""), ("$?", ""), ("$-", ""), ("$#", ""), ("$@", ""), ("$é", ""),
        ("\"a b\"c'd e'", "a bcd e"), (r"\\", "\\"), (r'"\\"', "\\"), (r'"\a"', r"\a"), (r"\a", "a"), (r"'\a'", r"\a"), ("`a`", "`a`"),
        ("a\\", "a"), ("", ""), ('""', ""),
    ],
)  # fmt: skip
def test_words(word: str, result: str) -> None:
    assert Words().word(word, ENV) == result


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("${z:?}", "z: is not allowed to be unset"),
        ("${z?msg here}", "z: msg here"),
        ("${e:?}", "e: is not allowed to be empty"),
        ("${a/}", "syntax error: missing '/' in ${}"),
        ("${a/1}", "syntax error: missing '/' in ${}"),
        ("${a/1/", "syntax error: missing '}'"),
        ("${a", "syntax error: missing '}'"),
        ("${a:", "syntax error: missing '}'"),
        ("${a:-x", "syntax error: missing '}'"),
        ("${", "syntax error: missing '}'"),
        ("${a:=b}", "unsupported modifier (:=) in substitution"),
        ("${a!b}", "unsupported modifier (!) in substitution"),
        ("${}", "syntax error: bad substitution"),
        ("${:x}", "syntax error: bad substitution"),
        ("${{a}}", "syntax error: bad substitution"),
        ("${p//\\x/y}", "invalid pattern (\\x) in substitution: invalid escape '\\x'"),
        ('a"b', "unexpected end of statement while looking for matching double-quote"),
        ("a'b", "unexpected end of statement while looking for matching single-quote"),
    ],
)
def test_mistakes(word: str, message: str) -> None:
    with pytest.raises(SubstitutionError) as caught:
        Words().expand(word, ENV)
    shown = word.replace("\\", "\\\\").replace('"', '\\"')
    assert str(caught.value) == f'failed to process "{shown}": {message}'


def test_a_result_is_split_where_it_was_not_quoted() -> None:
    env = {"x": " 1  2 ", "y": ""}
    assert Words().expand('80 $x "$x" a$x$y b\\ c "" $y \'d e\'f', env).words == ("80", "1", "2", " 1  2 ", "a", "1", "2", "b c", "d ef")
    assert Words().expand("", env).words == ()


def test_what_was_looked_up() -> None:
    found = Words().expand("$a ${b:-$c} ${d+x} ${d} ${e#x} '$f' \\$g", {"a": "1", "c": ""})
    assert found.used == {"a", "c"}
    assert found.unset == {"b", "d", "e"}
    assert found.defaulted == {"b"}


def test_the_files_own_escape_character() -> None:
    words = Words("`")
    assert words.word('C:\\$a `$a "`$a" ``', {"a": "1"}) == "C:\\1 $a $a `"


def test_names_of_steps_keep_what_is_not_set() -> None:
    shown = Words(keep_quotes=True, keep_unset=True)
    assert shown.word("RUN echo \"$a\" '$a' $b ${b} ${b:-c} ${b#x} ${b//x/y}", {"a": "1"}) == (
        "RUN echo \"1\" '$a' $b ${b} ${b:-c} ${b#x} ${b//x/y}"
    )


def test_documents_have_quotes_as_text() -> None:
    text = "$x ${x} '$x' \"$x\" \\$x \\\\ \\n $y\n"
    assert document(text, {"x": "1"}).text == "1 1 '1' \"1\" $x \\ n \n"


def test_patterns_stay_within_a_line() -> None:
    assert Pattern("*b").without_prefix("a\nb", longest=True) == "a\nb"
    assert Pattern("a*").without_prefix("ab\nc", longest=True) == "\nc"
    assert Pattern("a*").replaced("ab\nac\nd", "x", every=True) == "x\nx\nd"
    assert Pattern("*").without_suffix("ab\nc", longest=True) == "ab\n"
    assert Pattern("a*\nb").replaced("aa\nxa1\nb", "-", every=False) == "aa\nx-"


@pytest.mark.parametrize(
    "word",
    [
        "${z:-" * 100_000,
        '"${z:-' * 100_000 + '}"' * 100_000,
        "$a" * 1000,
        "${a//" + "*x" * 50_000 + "y/z}",
        "${a/" + "?" * 5000 + "y/z}",
        "$" * 200_000,
        "${m//a*\nb/z}",
    ],
)
def test_hostile_words_end(word: str) -> None:
    env = {"a": "x" * 1_000_000, "m": "\n" * 100_000 + "a" * 100_000}
    try:
        result = Words().expand(word, env).text
    except SubstitutionError as error:
        result = str(error)
    assert len(result) <= 1_000_000


def test_deep_but_honest() -> None:
    assert Words().word("${z:-" * 60 + "x" * 1000 + "}" * 60, {}) == "x" * 1000
