"""Layout of `--help`: usage, what it does, flags in groups, examples; in colour on a terminal only."""

from cli.flags import PROGRAM, Command
from cli.manual import COMMON, EXAMPLES, FLAGS, GROUP_SUMMARIES, SUMMARIES
from cli.streams import output
from cli.terminal import is_terminal, size

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

_ALIASES = {
    "ps": ("container ls", "container list", "container ps"), "images": ("image ls", "image list"),
    "rm": ("container rm", "container remove"), "rmi": ("image rm", "image remove"), "events": ("system events",), "info": ("system info",),
    "history": ("image history",), "tag": ("image tag",), "load": ("image load",), "import": ("image import",),
    "build": ("image build", "builder build", "buildx build"), "builder du": ("buildx du",), "builder prune": ("buildx prune",),
    "pull": ("image pull",), "push": ("image push",), "save": ("image save",),
}
_CONTAINER_ALIASES = (
    "attach", "create", "exec", "kill", "logs", "port", "rename", "restart", "run", "start", "stop", "top", "update", "wait",
)  # fmt: skip


class Style:
    """Terminal codes, or nothing."""

    def __init__(self, colour: bool):
        self.colour = colour

    def __call__(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colour else text

    def title(self, text: str) -> str:
        return self("1", text)

    def flag(self, text: str) -> str:
        return self("36", text)

    def dim(self, text: str) -> str:
        return self("2", text)


def _width() -> int:
    return min(size()[1] or 100, 120)


def wrap(text: str, width: int) -> "list[str]":
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def _rows(rows: "list[tuple[str, str]]", style: Style, left: int) -> "list[str]":
    """Two columns; a long first cell has its text on the next line."""
    out = []
    for name, text in rows:
        lines = wrap(text, max(30, _width() - left - 2))
        if len(name) > left - 2:
            out.append("  " + style.flag(name))
        else:
            out.append("  " + style.flag(name) + " " * (left - len(name)) + lines.pop(0))
        out += [" " * (left + 2) + line for line in lines]
    return out


def _flag_name(command: Command, flag: str) -> str:
    short = next((f"-{letter}, " for letter, long in command.shorts.items() if long == flag), "    ")
    kind = command.flags[flag].partition(":")[0]
    shown = {"int64": "int", "uint16": "int", "uint64": "int", "strings": "list", "filter": "filter", "gpu-request": "gpus"}.get(kind, kind)
    return f"{short}--{flag}" + ("" if kind == "bool" else f" {shown}")


def flag_groups(command: Command, style: Style) -> "list[str]":
    out = []
    for title, flags in FLAGS.get(command.name, ()):
        rows = [(_flag_name(command, flag), text) for flag, text in flags.items() if flag in command.flags]
        if rows:
            out += ["", style.title(title + ":"), *_rows(rows, style, 32)]
    return out


def summary_key(name: str) -> str:
    """Under which name the manual has a command: the short one where there is one, `images` for `image ls`."""
    if name in SUMMARIES:
        return name
    group, _, rest = name.partition(" ")
    if group == "buildx" and rest != "build":
        return f"builder {rest}"
    return {"image ls": "images", "image rm": "rmi", "container ls": "ps"}.get(name, rest or group)


def command_help(command: Command) -> int:
    """Print the help of one command; exit status 0."""
    if not command.name:
        return top({})
    shown = command.name
    command = command.named(summary_key(shown))
    style = Style(is_terminal(1))
    lines = [style.title("Usage:") + f"  {PROGRAM} {shown} {command.usage}".rstrip(), "", SUMMARIES[command.name]]
    names = (command.name, *_ALIASES.get(command.name, ()), *((f"container {command.name}",) if command.name in _CONTAINER_ALIASES else ()))
    aliases = [name for name in names if name != shown]
    if aliases:
        lines += ["", style.title("Also:") + "  " + ", ".join(f"{PROGRAM} {alias}" for alias in aliases)]
    lines += flag_groups(command, style)
    examples = EXAMPLES.get(command.name.rpartition(" ")[2] if command.name not in EXAMPLES else command.name, ())
    if examples:
        lines += ["", style.title("Examples:")]
        for text, line in examples:
            lines += ["  " + style.dim(f"# {text}")] if text else []
            lines.append("  " + line)
    output("\n".join(lines) + "\n")
    return 0


def top(options: "dict[str, Any]") -> int:
    """`knarr` and `knarr --help`; `--version` too."""
    from cli.main import COMMANDS, GLOBAL, GLOBAL_SHORTS, VERSION

    if options.get("version"):
        output(f"Knarr version {VERSION}\n")
        return 0
    style = Style(is_terminal(1))
    names = sorted(name for name in COMMANDS if name in SUMMARIES and name not in (*COMMON, "debug"))
    lines = [
        style.title("Usage:") + f"  {PROGRAM} [OPTIONS] COMMAND", "", "Runs containers, fast. Speaks Docker's API and command line.",
        "", style.title("Common commands:"), *_rows([(name, SUMMARIES[name]) for name in COMMON], style, 14),
        "", style.title("Groups:"), *_rows([*GROUP_SUMMARIES.items(), ("debug", SUMMARIES["debug"])], style, 14),
        "", style.title("Commands:"), *_rows([(name, SUMMARIES[name]) for name in [*names, "daemon"]], style, 14),
        *flag_groups(Command("", "", GLOBAL, GLOBAL_SHORTS), style),
        "", f"'{PROGRAM} COMMAND --help' says more. With no daemon running, the first command of root starts one.",
    ]
    output("\n".join(lines) + "\n")
    return 0


def help_(client: object, name: str, argv: "list[str]") -> int:
    """`knarr help [COMMAND]`"""
    if not argv:
        return top({})
    from cli.main import run

    return run([*argv, "--help"])
