"""Which of Docker's commands are not there yet, so that they answer `not implemented` and not that there is no such command. Data only.

Follows the command reference of the Docker CLI 28; read on the failure path alone.
"""

_TOP = (
    "checkpoint", "commit", "compose", "config", "context", "cp", "diff", "export", "node",
    "pause", "plugin", "secret", "service", "stack", "stats", "swarm", "trust", "unpause",
)  # fmt: skip
_GROUPS = {
    "container": ("commit", "cp", "diff", "export", "pause", "stats", "unpause"),
    "builder": ("bake", "create", "history", "imagetools", "inspect", "ls", "rm", "stop", "use"),
    "buildx": ("bake", "create", "history", "imagetools", "inspect", "ls", "rm", "stop", "use"),
}


def unknown(name: str, group: str = "") -> str:
    """What to say of the command `name` (of `group`, if any) that Knarr does not serve: a promise when Docker has it, else a denial."""
    where = f"knarr {group}" if group else "knarr"
    if name in (_GROUPS.get(group, ()) if group else _TOP):
        return f"not implemented: {where} {name}\n\nRun '{where} --help' for the commands that work"
    usage = f"Usage:  {where}{' COMMAND' if group == 'manifest' else ''}\n\n" if group else ""
    return f"knarr: unknown command: {where} {name}\n\n{usage}Run '{where} --help' for more information"
