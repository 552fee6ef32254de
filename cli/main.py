"""Entry of the program: global flags, which module serves which command, and how a command's end becomes an exit status.

Only what every command needs is imported here; a command's module is imported when it is called. The modules of the commands used all day
use C modules alone and quote their annotations, because every standard module imported is felt (`os` 2 ms, `re` 6, `json` 7, `socket` 6,
`signal` 5, `__future__` 0.2; the bare interpreter takes 7). `tests/unit/test_cli_flags.py` watches that.
"""

import gc
import sys

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

VERSION = "0.1.0"

CONTAINER = {
    "attach": ("attach", "attach"), "create": ("run", "create"), "exec": ("execs", "exec_"), "inspect": ("inspect", "inspect_containers"),
    "kill": ("containers", "kill"), "logs": ("logs", "logs"), "list": ("containers", "ls"), "ls": ("containers", "ls"),
    "port": ("ports", "port"), "prune": ("prune", "containers"), "ps": ("containers", "ls"), "remove": ("containers", "rm"),
    "rename": ("containers", "rename"), "restart": ("containers", "restart"),
    "rm": ("containers", "rm"), "run": ("run", "run"), "start": ("run", "start"), "stop": ("containers", "stop"),
    "top": ("containers", "top"), "update": ("update", "update"), "wait": ("containers", "wait"),
}
IMAGE = {
    "build": ("build", "build"),
    "from-host": ("apps", "image_from_host"), "history": ("images", "history"), "import": ("archives", "import_"),
    "inspect": ("inspect", "inspect_images"), "list": ("images", "ls"), "load": ("archives", "load"), "ls": ("images", "ls"),
    "prune": ("prune", "images"), "pull": ("pull", "pull"), "push": ("pull", "push"), "remove": ("images", "rm"), "rm": ("images", "rm"),
    "save": ("archives", "save"), "tag": ("images", "tag"),
}
MANIFEST = {
    "annotate": ("manifests", "annotate"), "create": ("manifests", "create"), "inspect": ("manifests", "inspect"),
    "push": ("manifests", "push"), "rm": ("manifests", "rm"),
}
NETWORK = {
    "connect": ("networks", "connect"), "create": ("networks", "create"), "disconnect": ("networks", "disconnect"),
    "inspect": ("inspect", "inspect_networks"), "list": ("networks", "ls"), "ls": ("networks", "ls"), "prune": ("prune", "networks"),
    "remove": ("networks", "rm"), "rm": ("networks", "rm"),
}
SYSTEM = {
    "check": ("check", "check"), "df": ("diskusage", "df"), "dial-stdio": ("dial", "dial_stdio"), "events": ("events", "events"),
    "gc": ("collect", "gc"),
    "info": ("system", "info"), "prune": ("prune", "system"),
}
VOLUME = {
    "create": ("volumes", "create"), "inspect": ("inspect", "inspect_volumes"), "list": ("volumes", "ls"), "ls": ("volumes", "ls"),
    "prune": ("prune", "volumes"), "remove": ("volumes", "rm"), "rm": ("volumes", "rm"),
}
REGISTRY = {"serve": ("registry", "serve")}
BUILDER = {"build": ("build", "build"), "du": ("builder", "du"), "prune": ("builder", "prune")}
GROUPS = {
    "builder": BUILDER, "buildx": BUILDER, "registry": REGISTRY, "container": CONTAINER, "image": IMAGE, "manifest": MANIFEST,
    "network": NETWORK, "system": SYSTEM, "volume": VOLUME,
}
COMMANDS = {name: CONTAINER[name] for name in (
    "attach", "create", "exec", "kill", "logs", "port", "ps", "rename", "restart", "rm", "run", "start", "stop", "top", "update", "wait",
)} | {
    "build": IMAGE["build"], "events": SYSTEM["events"], "history": IMAGE["history"], "images": IMAGE["ls"], "import": IMAGE["import"],
    "info": SYSTEM["info"], "inspect": ("inspect", "inspect"), "load": IMAGE["load"], "login": ("login", "login"),
    "logout": ("login", "logout"),
    "pull": IMAGE["pull"], "push": IMAGE["push"], "rmi": IMAGE["rm"], "save": IMAGE["save"], "search": ("search", "search"),
    "tag": IMAGE["tag"], "version": ("system", "version"),
    "help": ("help", "help_"), "debug": ("apps", "debug_command"),
}
GLOBAL = {
    "config": "string", "context": "string", "debug": "bool", "host": "list", "log-level": "string", "tls": "bool", "tlscacert": "string",
    "tlscert": "string", "tlskey": "string", "tlsverify": "bool", "version": "bool",
}
GLOBAL_SHORTS = {"c": "context", "D": "debug", "H": "host", "l": "log-level", "v": "version"}


def site_packages() -> None:
    """Make the installed packages importable; the launcher starts without them because most commands need none."""
    path = getattr(sys, "knarr_site", "")
    if path and path not in sys.path:
        sys.path.append(path)


def dispatch(argv: "list[str]") -> int:
    """Run one command line (without the program's name) and return its exit status. Raises Failure and Help."""
    options: dict[str, Any] = {}
    if argv and argv[0][:1] == "-":
        options, argv = _global_flags(argv)
    if not argv:
        from cli.help import top

        return top(options)
    name, rest = argv[0], argv[1:]
    if name == "daemon":
        site_packages()
        gc.enable()
        from cli.daemon import main as daemon_main

        return daemon_main(_with_hosts(options, rest))
    target = COMMANDS.get(name)
    group = GROUPS.get(name)
    if target is None and group is not None:
        target = group.get(rest[0]) if rest else None
        if target is None:
            site_packages()
            from cli.apps import group as group_command

            return group_command(name, rest)
        name, rest = f"{name} {rest[0]}", rest[1:]
    if target is None:
        from cli.client import Failure
        from cli.later import unknown

        raise Failure(unknown(name))
    from cli.client import Client

    if target[0] == "apps":
        site_packages()
    module = __import__("cli." + target[0], None, None, (target[1],))
    code: int = getattr(module, target[1])(Client(_host(options), folder=options.get("config", "")), name, rest)
    return code


def _global_flags(argv: "list[str]") -> "tuple[dict[str, Any], list[str]]":
    from cli.flags import Command, parse

    return parse(Command("", "[OPTIONS] COMMAND [ARG...]", GLOBAL, GLOBAL_SHORTS, interspersed=False), argv)


def _host(options: "dict[str, Any]") -> str:
    """The `-H` value; refuses what would silently talk to another daemon than the one meant."""
    if not options:
        return ""
    from cli.client import Failure

    hosts = options.get("host", [])
    if len(hosts) > 1:
        raise Failure("Specify only one -H")
    if hosts and options.get("context"):
        raise Failure("conflicting options: cannot specify both --host and --context")
    if options.get("context", "default") != "default":
        raise Failure(f"not implemented: --context {options['context']} (only 'default'; use -H or DOCKER_HOST)")
    if any(options.get(name) for name in ("tls", "tlscacert", "tlscert", "tlskey", "tlsverify")):
        raise Failure("not implemented: TLS to the daemon; use unix:// or a plain tcp:// address")
    return hosts[0] if hosts else ""


def _with_hosts(options: "dict[str, Any]", rest: "list[str]") -> "list[str]":
    return [word for host in options.get("host", ()) for word in ("-H", host)] + rest


def write_error(text: str) -> None:
    import posix

    if text:
        if not text.isprintable():  # parts of it may come from a registry or an archive, which must not drive the terminal
            text = "".join(char for char in text if char in "\n\t" or not (char < " " or "\x7f" <= char <= "\x9f"))
        try:
            posix.write(2, (text + "\n").encode("utf-8", "surrogateescape"))
        except OSError:
            pass  # nobody reads


def run(argv: "list[str]") -> int:
    """`dispatch` with every way a command ends turned into an exit status."""
    from cli.client import Failure
    from cli.flags import Help

    try:
        return dispatch(argv)
    except Help as wanted:
        from cli.help import command_help

        return command_help(wanted.command)
    except Failure as failure:
        write_error(failure.text)
        return failure.code
    except BrokenPipeError:
        return 141  # what a shell reports for SIGPIPE, which the interpreter ignores
    except OSError as error:
        write_error(f"knarr: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        return 1
    except KeyboardInterrupt:
        return 130


def main() -> None:
    """End the process with the exit status of the command line; nothing is torn down, because the kernel does it faster."""
    import posix

    gc.disable()
    # a caller may have closed stdin, stdout or stderr: no socket of ours may get their numbers
    while (descriptor := posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)) < 3:
        posix.set_inheritable(descriptor, True)
    posix.close(descriptor)
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            pass  # nobody reads
    posix._exit(code)


if __name__ == "__main__":
    main()
