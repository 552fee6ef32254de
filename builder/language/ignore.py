"""Which paths of a context are left out: .dockerignore, and the same patterns where BuildKit takes them elsewhere (`--exclude`).

Owns the file's syntax (moby/patternmatcher's `ignorefile`), the rule that the last pattern that matches a path or a folder above it
decides, and whether a walk may pass over a folder. What one pattern matches is in `ignorepattern`. Pure; imports nothing heavy, because
the client walks contexts with it.

A walk goes from the top: `Patterns.root`, then `Folder.leaves_out(name)` for each entry and `Folder.enter(name)` for each folder. A folder
that is left out still has to be walked unless `skippable`, and is there after all when something below it is not left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from engine.errors import InvalidParameter

from .ignorepattern import ANY_FOLDERS, BEGINS, ENDS, IS, LIKE, LINE_FOLDERS, Machine, Test, translate

LONGEST_LINE = 1 << 16
"""Docker's reader of the file takes no longer line, its end included."""
LARGEST = 1 << 20
"""Bytes of a file that is read at all."""

_SPACE = " \t\n\v\f\r\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
"""What Go trims."""


def candidates(dockerfile: str) -> tuple[str, str]:
    """Where the patterns for a Dockerfile are looked for, first to last: beside the Dockerfile, and at the top of the main context."""
    return f"{dockerfile}.dockerignore", ".dockerignore"


def read(text: bytes) -> list[str]:
    """The patterns of a file, cleaned. Names that are no UTF-8 keep their bytes as surrogates. Raises InvalidParameter for a line that is
    too long for Docker."""
    patterns = []
    for raw in text.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if len(raw) >= LONGEST_LINE:
            raise InvalidParameter("error reading .dockerignore: bufio.Scanner: token too long")
        line = raw.removesuffix(b"\r").decode("utf-8", "surrogateescape")
        if line.startswith("#") or not (line := line.strip(_SPACE)):
            continue
        exception = line.startswith("!")
        pattern = line[1:].strip(_SPACE) if exception else line
        if pattern:
            pattern = clean(pattern)
            if len(pattern) > 1:
                pattern = pattern.removeprefix("/")
        patterns.append("!" + pattern if exception else pattern)
    return patterns


def check_size(name: str, size: int) -> None:
    """Refuse a file whose patterns would be left out otherwise. Raises InvalidParameter."""
    if size > LARGEST:
        raise InvalidParameter(f"failed to read {name}: it has {size} bytes, more than {LARGEST}")


def clean(path: str) -> str:
    """The shortest path that is the same by its words alone: Go's `filepath.Clean`."""
    rooted = path.startswith("/")
    names: list[str] = []
    for name in path.split("/"):
        if name == ".." and names and names[-1] != "..":
            names.pop()
        elif name not in ("", ".") and not (rooted and name == ".."):
            names.append(name)
    return "/" + "/".join(names) if rooted else "/".join(names) or "."


class Patterns:
    """Patterns, ready to use. Raises InvalidParameter for a malformed one, in Docker's words."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self.patterns: list[str] = []
        """Those that count, as Docker shows them: cleaned, with `!`."""
        self.exceptions: list[bool] = []
        self._tests: list[Test] = []
        self._owners: list[int] = []  # of a test: its pattern
        self._nexts: list[tuple[int, ...]] = []  # of a test: those for the entries below what it matches, () when it is the last one
        self._machines: list[tuple[int, Machine]] = []
        self._nodes: dict[tuple[object, ...], _Node] = {}
        starts: list[int] = []
        for pattern in patterns:
            if not (pattern := pattern.strip(_SPACE)):
                continue
            pattern = clean(pattern)
            exception = pattern.startswith("!")
            if pattern == "!":
                raise InvalidParameter('illegal exclusion pattern: "!"')
            owner = len(self.patterns)
            self.patterns.append(pattern)
            self.exceptions.append(exception)
            try:
                translated = translate(pattern[1:] if exception else pattern)
            except InvalidParameter as error:
                raise InvalidParameter(error.message, hint=f"the pattern is {pattern!r}") from None
            if isinstance(translated, Machine):
                self._machines.append((owner, translated))
            else:
                for tests in translated:
                    starts.extend(self._add(tests, owner))
        start = self._node(tuple(sorted(starts)), tuple(machine.start for _, machine in self._machines))
        self.root = Folder(self, start, (), False)
        """The context itself, which nothing leaves out."""
        self._above: tuple[str, Folder] = "", self.root

    def _add(self, tests: list[Test], owner: int) -> tuple[int, ...]:
        """Takes up a pattern's tests; returns those that are first."""
        following: tuple[int, ...] = ()
        for test in reversed(tests):
            index = len(self._tests)
            self._tests.append(test)
            self._owners.append(owner)
            self._nexts.append(following)
            following = (index, *following) if test[0] in (ANY_FOLDERS, LINE_FOLDERS) else (index,)
        return following

    def _node(self, tests: tuple[int, ...], states: tuple[tuple[int, int], ...]) -> _Node:
        key = (tests, states)
        node = self._nodes.get(key)
        if node is None:
            if len(self._nodes) > 1000:
                self._nodes.clear()
            node = self._nodes[key] = _Node(self, tests, states)
        return node

    def excluded(self, path: str | bytes) -> bool:
        """Whether a path (relative, cleaned, its folders apart by `/`) is left out."""
        if isinstance(path, bytes):
            path = path.decode("utf-8", "surrogateescape")
        above, _, name = path.rpartition("/")
        known, folder = self._above
        if known != above:
            folder = self.root
            for each in above.split("/") if above else ():
                folder = folder.enter(each)
            self._above = above, folder
        return folder.leaves_out(name)


class Folder:
    """A folder of a walk. `excluded`: it is left out itself."""

    __slots__ = ("_matched", "_node", "_patterns", "excluded")

    def __init__(self, patterns: Patterns, node: _Node, matched: tuple[int, ...], excluded: bool) -> None:
        self._patterns = patterns
        self._node = node
        self._matched = matched  # patterns that match it or a folder above
        self.excluded = excluded

    def leaves_out(self, name: str | bytes) -> bool:
        """Whether the entry of this name is left out."""
        if isinstance(name, bytes):
            name = name.decode("utf-8", "surrogateescape")
        node = self._node
        if not node.mostly_nothing or name in node.exact or name.endswith(node.ends) or name.startswith(node.begins) or node.like(name):
            return self._judge(node.hits(name))[0]
        return self.excluded

    def enter(self, name: str | bytes) -> Folder:
        """The folder of this name."""
        if isinstance(name, bytes):
            name = name.decode("utf-8", "surrogateescape")
        excluded, matched = self._judge(self._node.hits(name))
        return Folder(self._patterns, self._node.below(name), matched, excluded)

    @property
    def skippable(self) -> bool:
        """Nothing that can be in this folder is taken: a walk need not read it."""
        return self.excluded and not self._node.hopeful

    @property
    def promising(self) -> bool:
        """Patterns may match something in this folder that do not match the folder: for walks that take what matches."""
        return self._node.promising

    def _judge(self, hits: set[int]) -> tuple[bool, tuple[int, ...]]:
        """The verdict on an entry that patterns `hits` match, and the patterns that count for what is below it.

        A pattern that would change nothing when its turn comes is not tried by Docker, and so not remembered for what is below.
        """
        if not hits:
            return self.excluded, self._matched
        exceptions = self._patterns.exceptions
        above = set(self._matched)
        excluded = False
        matched = []
        for index in sorted(above | hits):
            if index in above or exceptions[index] == excluded:
                matched.append(index)
                excluded = not exceptions[index]
        return excluded, tuple(matched)


class _Node:
    """What patterns ask of the entries of a folder; the same for many folders.

    `exact`, `ends`, `begins` and `like` find names about which there is something to say, unless there always is (not `mostly_nothing`).
    `promising`: a pattern may match something below; `hopeful`: an exception may.
    """

    __slots__ = (
        "_below", "_deep", "_patterns", "_states", "_tests", "begins", "ends", "exact", "hopeful", "like", "mostly_nothing", "promising",
    )  # fmt: skip

    def __init__(self, patterns: Patterns, tests: tuple[int, ...], states: tuple[tuple[int, int], ...]) -> None:
        self._patterns = patterns
        self._states = states
        self._below: dict[str, _Node] = {}
        exact: dict[str, list[int]] = {}
        ends: list[str] = []
        begins: list[str] = []
        likes: list[str] = []
        self._tests: list[int] = []
        self._deep: list[int] = []
        for index in tests:
            kind, text = patterns._tests[index]
            if kind == IS:
                exact.setdefault(text, []).append(index)
            elif kind in (ANY_FOLDERS, LINE_FOLDERS):
                self._deep.append(index)
            else:
                self._tests.append(index)
                {ENDS: ends, BEGINS: begins, LIKE: likes}[kind].append(text)
        self.exact = exact
        self.ends = tuple(ends)
        self.begins = tuple(begins)
        self.like = _matcher("|".join(likes)) if likes else _never
        living = [owner for (owner, _), state in zip(patterns._machines, states, strict=True) if state != (0, 0)]
        self.mostly_nothing = not living and all(patterns._nexts[index] for index in self._deep)
        self.promising = bool(living or tests)
        self.hopeful = any(patterns.exceptions[owner] for owner in [*living, *(patterns._owners[index] for index in tests)])

    def _passed(self, name: str) -> list[int]:
        """The tests that a name passes."""
        passed = [*self.exact.get(name, ()), *(self._deep if "\n" not in name else ())]
        for index in self._tests:
            kind, text = self._patterns._tests[index]
            if (
                (kind == ENDS and name.endswith(text))
                or (kind == BEGINS and name.startswith(text))
                or (kind == LIKE and _matcher(text)(name))
            ):
                passed.append(index)
        if "\n" in name:
            passed.extend(index for index in self._deep if self._patterns._tests[index][0] == ANY_FOLDERS)
        return passed

    def hits(self, name: str) -> set[int]:
        """The patterns that match the entry of this name."""
        patterns = self._patterns
        hits = {patterns._owners[index] for index in self._passed(name) if not patterns._nexts[index]}
        for (owner, machine), state in zip(patterns._machines, self._states, strict=True):
            if state != (0, 0) and machine.accepts(machine.feed(state, name), name[-1:]):
                hits.add(owner)
        return hits

    def below(self, name: str) -> _Node:
        """What is asked of the entries of the folder of this name."""
        node = self._below.get(name)
        if node is None:
            patterns = self._patterns
            tests: set[int] = set()
            for index in self._passed(name):
                tests.update(patterns._nexts[index])
                if patterns._tests[index][0] in (ANY_FOLDERS, LINE_FOLDERS):
                    tests.add(index)
            states = tuple(
                machine.feed(state, name + "/") if state != (0, 0) else state
                for (_, machine), state in zip(patterns._machines, self._states, strict=True)
            )
            node = patterns._node(tuple(sorted(tests)), states)
            if len(self._below) > 1000:
                self._below.clear()
            self._below[name] = node
        return node


@lru_cache(2000)
def _matcher(expression: str) -> Callable[[str], object]:
    return re.compile(expression).fullmatch


def _never(_: str) -> object:
    return None
