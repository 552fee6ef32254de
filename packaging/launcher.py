"""Writes `.venv/bin/knarr`: a script that starts the interpreter isolated and without `site`, which halves its start-up.

Usage: python packaging/launcher.py [TARGET]. The installed packages' folder is handed on for the commands that need it.
The kernel gives an interpreter one argument and cuts the `#!` line at 256 bytes (execve(2)), hence `-IS` in one word and the shell
as the fall-back for long paths.
"""

import os
import sys
import sysconfig
from pathlib import Path

SHEBANG_LIMIT = 255

BODY = """import sys
sys.path.insert(0, {root!r})
sys.knarr_site = {site!r}
from cli.main import main
main()
"""


def script(python: str, root: str, site: str) -> str:
    """The launcher's text; `python` is an absolute path."""
    shebang = f"#!{python} -IS\n"
    if len(shebang) > SHEBANG_LIMIT or " " in python:
        # a line that is a shell command and a Python string at once
        shebang = f"#!/bin/sh\n'''exec' '{python}' -IS \"$0\" \"$@\"\n' '''\n"
    return shebang + BODY.format(root=root, site=site)


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    python = Path(sys.prefix, "bin", "python")
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else python.parent / "knarr"
    temporary = target.with_name(target.name + ".new")
    temporary.write_text(script(str(python), str(root), sysconfig.get_paths()["purelib"]))
    os.chmod(temporary, 0o755)
    os.replace(temporary, target)
    # so that the first call finds bytecode, also where the caller may not write it
    import compileall

    compileall.compile_dir(str(root / "cli"), quiet=2)


if __name__ == "__main__":
    main()
