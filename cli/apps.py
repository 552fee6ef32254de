"""Command groups and the commands whose start-up time does not matter, on typer (which costs 65 ms to import).

`knarr image`, `container`, `manifest`, `network`, `system` and `volume` alone list their commands; `image from-host` and `debug …` are
parsed by typer itself.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cli.client import Client, Failure, quote
from cli.later import unknown
from cli.manual import GROUP_SUMMARIES, SUMMARIES
from cli.streams import output

_SETTINGS = {"help_option_names": ["-h", "--help"]}
_client: list[Client] = []
image = typer.Typer(help=GROUP_SUMMARIES["image"], context_settings=_SETTINGS, add_completion=False, no_args_is_help=True)
container = typer.Typer(help=GROUP_SUMMARIES["container"], context_settings=_SETTINGS, add_completion=False, no_args_is_help=True)
builder = typer.Typer(help=GROUP_SUMMARIES["builder"], context_settings=_SETTINGS, add_completion=False, no_args_is_help=True)
system = typer.Typer(help=GROUP_SUMMARIES["system"], context_settings=_SETTINGS, add_completion=False, no_args_is_help=True)
manifest = typer.Typer(help=GROUP_SUMMARIES["manifest"], context_settings=_SETTINGS, add_completion=False, no_args_is_help=True)
network = typer.Typer(help=GROUP_SUMMARIES["network"], context_settings=_SETTINGS, add_completion=False, no_args_is_help=True)
volume = typer.Typer(help=GROUP_SUMMARIES["volume"], context_settings=_SETTINGS, add_completion=False, no_args_is_help=True)
registry = typer.Typer(help=GROUP_SUMMARIES["registry"], context_settings=_SETTINGS, add_completion=False, no_args_is_help=True)
debug = typer.Typer(help=SUMMARIES["debug"] + ".", context_settings=_SETTINGS, add_completion=False, no_args_is_help=True)
APPS = {
    "builder": builder, "buildx": builder, "image": image, "container": container, "manifest": manifest, "network": network,
    "registry": registry, "system": system, "volume": volume,
    "debug": debug,
}  # fmt: skip


@image.command("from-host", help=SUMMARIES["image from-host"] + ".\n\nExample: knarr image from-host -t jq jq && knarr run --rm -i jq .")
def from_host(
    programs: Annotated[list[str], typer.Argument(metavar="PROGRAM...", help="Programs: paths, or names on PATH")],
    tag: Annotated[str, typer.Option("--tag", "-t", help="Name of the image: NAME[:TAG]")] = "",
    entrypoint: Annotated[str, typer.Option(help="Command that the image runs, words as in a shell (default: the first program)")] = "",
    cmd: Annotated[str, typer.Option(help="Its default arguments, words as in a shell")] = "",
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="Environment: NAME=VALUE")] = None,
    user: Annotated[str, typer.Option("--user", "-u", help="User it runs as")] = "",
    workdir: Annotated[str, typer.Option("--workdir", "-w", help="Working directory")] = "",
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="Label: NAME=VALUE")] = None,
    file: Annotated[list[str] | None, typer.Option("--file", help="One more file or folder that the programs need")] = None,
    passwd: Annotated[bool, typer.Option("--passwd", help="With /etc/passwd and /etc/group")] = False,
    nsswitch: Annotated[bool, typer.Option("--nsswitch", help="With what looking up names needs")] = False,
    ca_certificates: Annotated[bool, typer.Option("--ca-certificates", help="With this host's certificate authorities, for TLS")] = False,
) -> None:
    import os
    import shlex
    from shutil import which

    from cli.codec import loads

    found = []
    for program in programs:
        path = which(program)
        if path is None:
            raise Failure(f"image from-host: {program}: no such program on this host")
        found.append(os.path.abspath(path))
    body = {
        "Programs": found, "Tag": tag, "Entrypoint": shlex.split(entrypoint) or None, "Cmd": shlex.split(cmd) or None, "Env": env or [],
        "User": user,
        "WorkingDir": workdir, "Labels": dict(one.partition("=")[::2] for one in label or ()),
        "Files": [os.path.abspath(one) for one in file or ()],
        "Passwd": passwd, "Nsswitch": nsswitch, "CaCertificates": ca_certificates,
    }
    output(str(loads(_client[0].post("/images/fromhost", body))["Id"]) + "\n")


@registry.callback()
def _registry() -> None:
    """Keeps `registry` a group while it has one command."""


@debug.callback()
def _debug() -> None:
    """Keeps `debug` a group while it has one command."""


@debug.command("trace", help="Show where the time of a container's last start went, in microseconds.")
def debug_trace(name: Annotated[str, typer.Argument(metavar="CONTAINER", help="Name or id")]) -> None:
    from cli.trace import show

    show(_client[0].get(f"/containers/{quote(name)}/trace"))


def _list_plain_commands() -> None:
    """So that a group's help shows the commands that `cli/main.py` serves without typer."""
    from cli.help import summary_key
    from cli.main import GROUPS

    for group, commands in GROUPS.items():
        for name in commands:
            if name not in ("list", "remove", "from-host", "ps", "dial-stdio"):
                APPS[group].command(name, help=SUMMARIES[summary_key(f"{group} {name}")])(lambda: None)


def group(name: str, argv: list[str]) -> int:
    """`knarr GROUP …` for what the table of commands does not serve itself."""
    if argv and not argv[0].startswith("-") and name != "debug":
        raise Failure(unknown(argv[0], name))
    _list_plain_commands()
    code = _run(name, argv)
    return code if argv else 0  # a group alone asks for its help, which is no error


def _run(name: str, argv: list[str]) -> int:
    """Have typer parse and run; its exits become exit statuses."""
    try:
        APPS[name](args=argv, prog_name=f"knarr {name}", standalone_mode=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0


def image_from_host(client: Client, name: str, argv: list[str]) -> int:
    _client.append(client)
    _list_plain_commands()
    return _run("image", ["from-host", *argv])


def debug_command(client: Client, name: str, argv: list[str]) -> int:
    _client.append(client)
    return _run("debug", argv)
