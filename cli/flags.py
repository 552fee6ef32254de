"""The command line: one table of flags per command, parsed as Docker's clients do (spf13/pflag's rules), without argparse.

`--name value`, `--name=value`, `-n value`, `-nvalue`, `-n=value`, `-abc` for booleans; a boolean takes a value only after `=`;
`--` ends the flags; commands whose arguments carry another command (`run`, `exec`) end them at the first argument.
Every error about flags ends with exit status 125, one about the number of arguments with 1, both with Docker's words.

A flag's type is what `--help` shows: `bool string int list map bytes duration …`. Types that need checking or converting are in
`cli/values.py`, imported when such a flag is met.
"""

from cli.client import Failure

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

PROGRAM = "knarr"
TRUE = ("1", "t", "T", "true", "TRUE", "True")
FALSE = ("0", "f", "F", "false", "FALSE", "False")
ALIASES = {"list": "ls", "remove": "rm"}
LISTS = ("list", "strings", "map", "mount", "network", "ulimit", "gpu-request", "filter")


class Command:
    """Name as typed, usage after it, flags `{long: type}`, one-letter names `{short: long}`, how many arguments."""

    __slots__ = ("at_least", "at_most", "flags", "hidden", "interspersed", "name", "shorts", "usage")

    def __init__(
        self, name: str, usage: str, flags: "dict[str, str]", shorts: "dict[str, str]", at_least: int = 0, at_most: "int | None" = None,
        interspersed: bool = True, hidden: "dict[str, str] | None" = None,
    ):  # fmt: skip
        self.name = name
        self.usage = usage
        self.flags = flags
        self.shorts = shorts
        self.at_least = at_least
        self.at_most = at_most
        self.interspersed = interspersed
        self.hidden = hidden or {}

    def named(self, name: str) -> "Command":
        """The same under the name it was called by, so that usage and errors show that one."""
        words = name.split(" ")
        words[-1] = ALIASES.get(words[-1], words[-1])
        name = " ".join(words)
        if name == self.name:
            return self
        return Command(name, self.usage, self.flags, self.shorts, self.at_least, self.at_most, self.interspersed, self.hidden)


class Help(Exception):
    """`--help` was asked for."""

    def __init__(self, command: Command):
        self.command = command


def usage_error(command: Command, text: str, code: int, verb: str = "Run") -> Failure:
    title = f"{PROGRAM} {command.name}".rstrip()
    usage = f"Usage:  {title} {command.usage}".rstrip()
    return Failure(f"{text}\n\n{usage}\n\n{verb} '{title} --help' for more information", code)


def parse(command: Command, argv: "list[str]") -> "tuple[dict[str, Any], list[str]]":
    """The values of the flags given (lists collect) and the arguments. Raises Failure and Help."""
    values: dict[str, Any] = {}
    arguments: list[str] = []
    at = 0
    while at < len(argv):
        word = argv[at]
        at += 1
        if word == "--":
            arguments += argv[at:]
            break
        if word[:1] != "-" or word == "-":
            arguments.append(word)
            if not command.interspersed:
                arguments += argv[at:]
                break
        elif word[1] == "-":
            at = _long(command, word, argv, at, values)
        else:
            at = _shorts(command, word, argv, at, values)
    count(command, arguments)
    return values, arguments


def _long(command: Command, word: str, argv: "list[str]", at: int, values: "dict[str, Any]") -> int:
    name, equals, value = word[2:].partition("=")
    if not name or name[0] == "-":
        raise usage_error(command, f"bad flag syntax: {word}", 125)
    long = command.hidden.get(name, name)
    kind = command.flags.get(long)
    if kind is None:
        if name == "help":
            if value not in TRUE and equals:
                if value in FALSE:
                    return at
                raise usage_error(command, f'invalid argument "{value}" for "--help" flag: strconv.ParseBool: parsing "{value}": '
                    "invalid syntax", 125)
            raise Help(command)
        raise usage_error(command, f"unknown flag: --{name}", 125)
    if not equals:
        if kind == "bool":
            value = "true"
        elif at == len(argv):
            raise usage_error(command, f"flag needs an argument: --{name}", 125)
        else:
            value = argv[at]
            at += 1
    _set(command, long, kind, value, values)
    return at


def _shorts(command: Command, word: str, argv: "list[str]", at: int, values: "dict[str, Any]") -> int:
    rest = word[1:]
    while rest:
        letter, rest = rest[0], rest[1:]
        long = command.shorts.get(letter)
        if long is None:
            if letter == "h":
                raise Help(command)
            raise usage_error(command, f"unknown shorthand flag: '{letter}' in -{letter}{rest}", 125)
        kind = command.flags[long]
        if rest[:1] == "=":
            value, rest = rest[1:], ""
        elif kind == "bool":
            value = "true"
        elif rest:
            value, rest = rest, ""
        elif at < len(argv):
            value = argv[at]
            at += 1
        else:
            raise usage_error(command, f"flag needs an argument: '{letter}' in -{letter}", 125)
        _set(command, long, kind, value, values)
    return at


def _set(command: Command, long: str, kind: str, value: str, values: "dict[str, Any]") -> None:
    kind, _, check = kind.partition(":")
    if kind == "string":
        values[long] = value
    elif kind == "bool" and value in TRUE:
        values[long] = True
    elif kind == "bool" and value in FALSE:
        values[long] = False
    elif kind == "network" and "=" not in value:
        values.setdefault(long, []).append({"Target": value})
    elif kind == "list" and not check:
        values.setdefault(long, []).append(value)
    else:
        _convert(command, long, kind, check, value, values)


def _convert(command: Command, long: str, kind: str, check: str, value: str, values: "dict[str, Any]") -> None:
    from cli import values as converters

    try:
        result = converters.convert(check or kind, value)
    except ValueError as error:
        short = next((f"-{letter}, " for letter, name in command.shorts.items() if name == long), "")
        raise usage_error(command, f'invalid argument "{value}" for "{short}--{long}" flag: {error}', 125) from None
    if kind == "strings":
        values.setdefault(long, []).extend(result)
    elif kind in LISTS:
        values.setdefault(long, []).append(result)
    else:
        values[long] = result


def count(command: Command, arguments: "list[str]") -> None:
    """Raise Docker's error when there are too few or too many arguments."""
    least, most, got = command.at_least, command.at_most, len(arguments)
    if got >= least and (most is None or got <= most):
        return
    title = f"{PROGRAM}: '{PROGRAM} {command.name}'"
    if most == 0:
        raise usage_error(command, f"{title} accepts no arguments", 1)
    if most == least:
        raise usage_error(command, f"{title} requires {plural(least)}", 1)
    if most is None:
        raise usage_error(command, f"{title} requires at least {plural(least)}", 1, "See")
    if least:
        raise usage_error(command, f"{title} requires at least {least} and at most {plural(most)}", 1)
    raise usage_error(command, f"{title} requires at most {plural(most)}", 1)


def plural(number: int) -> str:
    return f"{number} argument" + ("s" if number != 1 else "")
