"""Patterns of .dockerignore leave out what Docker leaves out. The tables are what BuildKit did with these patterns and files."""

from __future__ import annotations

import pytest

from builder.language import ignore
from engine.errors import InvalidParameter

FILES = r"""
a b ab abc foo xfoo foob xfoob a.log x/a.log x/y/a.log x/foo x/y/foo x/xfoo dir/b dir/c/d dir/c/e dir2/b dir/deep/er/b ax/1 axb ax/y/b
a1 a2 [ ] * a* a^b ^a \ a\b a-z a.b a+b node_modules/m/i.js src/node_modules/m/i.js src/main.c .git/HEAD .env q/r/s/t/u q/r/z d1 !x #y
""".split()
FILES += [" sp", "n\nl/q", "n\nl2", "ünï", "ünï2/x"]


def left_out(*lines: str) -> set[str]:
    patterns = ignore.Patterns(ignore.read("\n".join(lines).encode()))
    return {path for path in FILES if patterns.excluded(path)}


def below(*folders: str) -> set[str]:
    return {path for path in FILES if path.startswith(folders)}


ONE_LEVEL = {path for path in FILES if "/" not in path}
B = {"b", "dir/b", "dir2/b", "dir/deep/er/b", "ax/y/b"}


@pytest.mark.parametrize(("lines", "expected"), [
    (["*"], set(FILES)), (["**"], set(FILES)), (["**/*"], set(FILES)), (["."], set()), (["/"], set()),
    (["dir"], below("dir/")), (["./dir"], below("dir/")), (["/dir"], below("dir/")), (["dir/"], below("dir/")),
    (["  dir  "], below("dir/")),
    (["dir/**"], below("dir/")), (["dir/*"], below("dir/")), (["dir/../b"], {"b"}), (["../b"], set()),
    (["*.log"], {"a.log"}), (["**/*.log"], {"a.log", "x/a.log", "x/y/a.log"}), (["**.log"], {"a.log", "x/a.log", "x/y/a.log"}),
    (["**foo"], {"foo", "xfoo", "x/foo", "x/y/foo", "x/xfoo"}),  # by its end alone
    (["**foo*"], {"foo", "foob", "x/foo", "x/y/foo"}),  # at the beginning of a name
    (["**/foo"], {"foo", "x/foo", "x/y/foo"}), (["foo**"], {"foo", "foob"}), (["x/**/foo"], {"x/foo", "x/y/foo"}),
    (["a**b"], {"ab", "ax/y/b"}), (["**/b"], B), (["dir/**/b"], {"dir/b", "dir/deep/er/b"}), (["*/b"], {"dir/b", "dir2/b"}),
    (["q/r/**/u"], {"q/r/s/t/u"}), (["dir/?/d"], {"dir/c/d"}), (["**/node_modules"], below("node_modules/", "src/node_modules/")),
    (["node_modules"], below("node_modules/")), (["[a-c]"], {"a", "b"}), (["?"], {"a", "b", "[", "]", "*", "\\"} | below("x/", "q/")),
    (["??"], {"ab", "a1", "a2", "a*", "^a", "d1", "!x", "#y"} | below("ax/")), (["?n?"], {"ünï"}), (["ünï*"], {"ünï", "ünï2/x"}),
    (["a.b"], {"a.b"}), (["a+b"], {"a+b"}), (["\\*"], {"*"}), (["a\\*"], {"a*"}), (["dir\\/b"], {"dir/b"}),
    (["**/q"], {"q/r/s/t/u", "q/r/z", "n\nl/q"}), (["**/[q]"], {"q/r/s/t/u", "q/r/z"}),  # no line feed where it is an expression
    # The last one that matches decides, and it may match a folder above.
    (["dir", "!dir/b"], below("dir/") - {"dir/b"}), (["dir", "!**/b"], below("dir/") - B), (["dir", "! dir/b"], below("dir/") - {"dir/b"}),
    (["!dir/b", "dir"], below("dir/")), (["dir/c", "!dir"], {"dir/c/d", "dir/c/e"}), (["dir", "!dir", "dir/c"], {"dir/c/d", "dir/c/e"}),
    (["**", "!**/b"], set(FILES) - B), (["dir/*", "!dir/c"], {"dir/b", "dir/deep/er/b"}),
    (["dir", "!dir/b", "dir*"], below("dir") - {"dir/b"}),  # the third changed nothing for the folder and is forgotten
    (["q/**", "!q/r/z"], {"q/r/s/t/u"}), (["q", "!q/**/u"], {"q/r/z"}), (["! dir", "dir"], below("dir/")),
    # Comments and names that begin with what has a meaning.
    (["#y"], set()), (["\\#y"], {"#y"}), ([" #y"], {"#y"}), (["\\!x"], {"!x"}), (["", "   ", "b"], {"b"}),
    # A pattern's text becomes Go's expression nearly unprotected.
    (["x[^a]foo"], {"x/foo"}), (["dir[^x]b"], {"dir/b"}), (["\\d1"], set()), (["a\\d"], {"a1", "a2"}), (["a^b"], {"a^b"}),
    (["^a"], {"^a"}), (["^a*b"], {"ab", "axb", "a^b", "a\\b", "a.b", "a+b"}), (["*^a"], {"a"}), (["[*]"], {"]"}),
    (["[[:alpha:]]"], {"a", "b"} | below("x/", "q/")),
    (["\\x61"], {"a"}), (["\\141"], {"a"}), (["\\bfoo\\b"], {"foo"}), (["\\Afoo"], {"foo"}), (["a\\z"], {"a"}), (["\\Qa"], set()),
    (["a\\-z"], {"a-z"}), (["a[\\-]z"], {"a-z"}),
])  # fmt: skip
def test_what_is_left_out(lines: list[str], expected: set[str]) -> None:
    assert left_out(*lines) == expected


@pytest.mark.parametrize("line", ["[]", "[a", "a\\", "a[-]z", "[a-]", "[^]a]", "[z-a]", "[[:foo:]]", "a\\o", "\\8", "[a-\\d]", "\\é"])
def test_malformed(line: str) -> None:
    with pytest.raises(InvalidParameter, match=r"^syntax error in pattern \(the pattern is"):
        left_out("b", line)


@pytest.mark.parametrize("line", ["!", "! "])
def test_an_exception_from_nothing(line: str) -> None:
    with pytest.raises(InvalidParameter, match='illegal exclusion pattern: "!"'):
        left_out("a", line)


def test_read() -> None:
    text = b"\xef\xbb\xbf# not a pattern\n/top/\n\t a//b/../c \r\n! /x/.\n /\n!\n\n  # a name\n\xff\x85\n"
    assert ignore.read(text) == ["top", "a/c", "!x", "/", "!", "# a name", "\udcff\udc85"]
    assert ignore.read(b"") == []


def test_a_line_that_is_too_long() -> None:
    assert ignore.read(b"a" * 65535) == ["a" * 65535]
    with pytest.raises(InvalidParameter, match="token too long"):
        ignore.read(b"b\n" + b"a" * 65536)


def test_names_that_are_no_text() -> None:
    patterns = ignore.Patterns(ignore.read(b"\xff?\nd/*\xfe\n"))
    assert patterns.excluded(b"\xff\xfd") and patterns.excluded(b"d/a\xfe") and patterns.root.leaves_out(b"\xffa")
    assert not patterns.excluded(b"\xfe\xfd") and not patterns.excluded(b"d/\xff") and not patterns.root.enter(b"d").leaves_out(b"a")


def test_where_patterns_are_looked_for() -> None:
    assert ignore.candidates("build/prod.Dockerfile") == ("build/prod.Dockerfile.dockerignore", ".dockerignore")


@pytest.mark.parametrize(("lines", "folder", "skippable"), [
    (["dir"], "dir", True), (["dir"], "dir/c", True), (["dir"], "x", False), (["dir/*"], "dir", False), (["dir/**"], "dir", False),
    (["dir/**"], "dir/c", True),
    (["dir", "!src"], "dir", True), (["dir", "!dir/c/d"], "dir", False), (["dir", "!dir/c/d"], "dir/c", False),
    (["dir", "!dir/c/d"], "dir/e", True), (["dir", "!**/b"], "dir", False), (["dir", "!*/b"], "dir", False),
    (["dir", "!*/b"], "dir/c", True),
    (["dir", "!*.c"], "dir", True), (["*", "!src/**/a"], "lib", True), (["*", "!src/**/a"], "src/x", False),
    (["*", "!s[^x]c/a"], "s", False),
    (["*", "!s[^x]c/a"], "t", True), (["*", "!a**z"], "a", False), (["*", "!a**z"], "b", True), (["!dir/b", "dir"], "dir", False),
])  # fmt: skip
def test_folders_that_a_walk_passes_over(lines: list[str], folder: str, skippable: bool) -> None:
    at = ignore.Patterns(lines).root
    for name in folder.split("/"):
        at = at.enter(name)
    assert at.skippable is skippable


def test_a_walk_for_what_matches() -> None:
    root = ignore.Patterns(["src/*/a"]).root
    assert root.promising and root.enter("src").promising and not root.enter("lib").promising
    assert root.enter("src").enter("x").leaves_out("a")


@pytest.mark.parametrize("lines", [
    ["**/*a*/**/" * 100 + "z"], ["*a" * 300 + "z"], ["**/a" * 300 + "/z"], ["a**" * 300 + "z"], ["[^b]*" * 300 + "z"],
    ["?*" * 300 + "[^/]z"], ["*a*" * 20000 + "[^c]"], ["**a/" * 15000 + "z"],
    [f"**/a/**/b/**/c/**/{each}" for each in range(300)],
])  # fmt: skip
def test_hostile_patterns_take_no_time(lines: list[str]) -> None:
    # Whoever goes back, or keeps a set for each place, does not live to see the end of this.
    patterns = ignore.Patterns(lines)
    for path in ("a" * 255, "/".join("a" * 800), "/".join(["a" * 200] * 15), "/".join("abc" * 200)):
        assert not patterns.excluded(path)


def test_the_client_loads_nothing_heavy_for_it() -> None:
    import ast
    from pathlib import Path

    for module in ("ignore", "ignorepattern"):
        tree = ast.parse((Path(ignore.__file__).parent / f"{module}.py").read_text())
        names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        assert names <= {"__future__", "re", "collections.abc", "functools", "engine.errors", "ignorepattern"}
