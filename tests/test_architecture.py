"""The layer table, as a test. Reads the sources' syntax trees; imports nothing of them.

A module imports only lower layers or its own package; packages on one line never import each other.
"""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS: list[set[str]] = [  # bottom to top
    {"engine._core"},
    {"engine.errors", "engine.config", "engine.spec"},
    {"engine.wire"},
    {"engine.linux"},
    {"engine.runtime", "engine.store", "engine.network"},
    {"engine.monitor", "engine.netd"},
    {"engine.aio"},
    {"engine.http"},
    {"engine.registry"},
    {"engine.service"},
    {"builder"},
    {"engine.api"},
    {"cli"},
]
# The packages of the builder, bottom to top; what stands beside them comes last.
BUILDER: list[str] = [
    "builder.language", "builder.faults", "builder.graph", "builder.tree", "builder.progress", "builder.secrets", "builder.lowering",
    "builder.checks", "builder.files", "builder.sources", "builder.solving", "builder.export", "builder.caches",
]  # fmt: skip
# These do no I/O and know no event loop.
PURE = ("builder.language", "builder.graph", "builder.lowering", "builder.checks")
# Pure data and settings name each other freely; nothing else shares a line so.
SAME_LINE = {("engine.config", "engine.errors"), ("engine.config", "engine.spec"), ("engine.spec", "engine.errors")}

# Who alone may import what. A prefix ending in "/" allows a folder.
ONLY_IN: dict[str, set[str]] = {
    "trio": {"engine/aio/", "engine/http/", "engine/registry/", "engine/service/", "engine/api/", "builder/", "cli/daemon.py"},
    "anyio": {"engine/aio/", "engine/registry/", "builder/"},
    "httpx": {"engine/registry/transport.py"},
    "httpx2": {"engine/registry/transport.py"},
    "urllib.request": set(),
    "requests": set(),
    "h11": {"engine/http/"},
    "http.client": set(),
    "subprocess": {"engine/monitor/client.py", "engine/service/top.py", "builder/sources/gitrun.py", "cli/autostart.py", "cli/terminal.py"},
    "threading": {"engine/aio/handoff.py", "cli/attach.py", "cli/terminal.py"},
    "concurrent.futures": set(),
    "multiprocessing": set(),
    "asyncio": set(),
    "sqlite3": {"engine/store/", "engine/service/durability.py", "engine/service/container.py"},
    "elftools": {"engine/linux/elf.py"},
    "typer": {"cli/"},
    "rich": {"cli/"},
    "pickle": set(),
}

# What a short client command may never load: each costs more than the whole command (37 to 130 ms).
HEAVY = (
    "trio",
    "anyio",
    "typer",
    "rich",
    "httpx",
    "httpx2",
    "h11",
    "asyncio",
    "sqlite3",
    "elftools",
    "click",
    "ssl",
    "urllib.request",
    "http.client",
)
HOT_COMMANDS = (
    ["version"],
    ["ps"],
    ["run", "--rm", "image", "true"],
    ["create", "image"],
    ["start", "c"],
    ["exec", "c", "true"],
    ["rm", "-f", "c"],
    ["build", "https://git.invalid/app.git"],
)

LONG_FILE = 500  # lines; a longer file is asking to be two


def sources() -> list[Path]:
    return sorted(p for package in ("engine", "builder", "cli") for p in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module: str) -> str | None:
    """The entry of LAYERS that `module` belongs to, or None when it is not ours or is a bare package (`engine`)."""
    for line in LAYERS:
        for unit in line:
            if module == unit or module.startswith(unit + "."):
                return unit
    return None


@functools.cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """(line, module) for every import in a file, those inside functions too; names of `from package import name` are joined on."""
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return tuple(found)


def type_checking_lines(path: Path) -> set[int]:
    """Lines inside `if TYPE_CHECKING:`: they are never executed, so the rules on what is loaded leave them alone."""
    lines: set[int] = set()
    text = path.read_text()
    if "TYPE_CHECKING" not in text:
        return lines
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            lines.update(range(node.lineno, node.body[-1].end_lineno or node.lineno))
            lines.add(node.body[-1].end_lineno or node.lineno)
    return lines


def rank(unit: str) -> int:
    return next(i for i, line in enumerate(LAYERS) if unit in line)


def test_a_module_imports_only_lower_layers() -> None:
    wrong = []
    for path in sources():
        mine = unit_of(module_name(path))
        for line, name in imports(path):
            theirs = unit_of(name)
            if theirs is None or theirs == mine:
                continue
            if mine is None:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: a bare package imports {name}")
            elif rank(theirs) > rank(mine) or (rank(theirs) == rank(mine) and (mine, theirs) not in SAME_LINE):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {mine} imports {theirs}")
    assert not wrong, "\n" + "\n".join(wrong)


def place_in_builder(module: str) -> int:
    """The place of a module of the builder among its packages; those beside them are above all."""
    return next((place for place, one in enumerate(BUILDER) if module == one or module.startswith(one + ".")), len(BUILDER))


def test_the_builders_packages_import_downwards() -> None:
    wrong = []
    for path in (ROOT / "builder").rglob("*.py"):
        mine = module_name(path)
        skipped = type_checking_lines(path)
        for line, name in imports(path):
            if line in skipped or not name.startswith("builder."):
                continue
            if place_in_builder(name) > place_in_builder(mine):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {mine} imports {name}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_front_end_is_pure() -> None:
    forbidden = {"trio", "socket", "subprocess", "tempfile", "shutil", "select", "threading"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in (ROOT / "builder").rglob("*.py")
        if module_name(path).startswith(PURE)
        for line, name in imports(path)
        if name.partition(".")[0] in forbidden or name.startswith(("engine.service.", "engine.store.", "engine.aio."))
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_module_has_a_layer() -> None:
    known = {"engine", "engine.native"}
    lost = [str(p.relative_to(ROOT)) for p in sources() if unit_of(module_name(p)) is None and module_name(p) not in known]
    assert not lost, f"not in the layer table: {lost}"


def allowed(path: Path, places: set[str]) -> bool:
    name = str(path.relative_to(ROOT))
    return any(name.startswith(place) if place.endswith("/") else name == place for place in places)


def test_some_modules_are_imported_in_named_places_only() -> None:
    wrong = []
    for path in sources():
        skipped = type_checking_lines(path)
        for line, name in imports(path):
            if line in skipped:
                continue
            for module, places in ONLY_IN.items():
                if (name == module or name.startswith(module + ".")) and not allowed(path, places):
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: imports {name}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_nothing_runs_a_shell_or_unpacks_blindly() -> None:
    wrong = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("os.system", "os.popen", "eval", "exec") or called.endswith(".extractall"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {called}")
            if any(k.arg == "shell" and isinstance(k.value, ast.Constant) and k.value.value for k in node.keywords):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: shell=True")
    assert not wrong, "\n" + "\n".join(wrong)


def test_spec_is_pure() -> None:
    """`engine.spec` does no I/O: it imports no module that could."""
    forbidden = {"os", "socket", "shutil", "tempfile", "io", "select", "signal", "pathlib"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in (ROOT / "engine/spec").rglob("*.py")
        for line, name in imports(path)
        if name.split(".")[0] in forbidden
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_files_say_what_they_own_and_stay_short() -> None:
    silent = []
    for path in sources():
        text = path.read_text()
        if text.strip() and ast.get_docstring(ast.parse(text)) is None:
            silent.append(str(path.relative_to(ROOT)))
        if (lines := text.count("\n")) > LONG_FILE:
            warnings.warn(f"{path.relative_to(ROOT)} has {lines} lines, is it two files?", stacklevel=1)
    assert not silent, f"no module docstring: {silent}"


def modules_loaded(arguments: list[str]) -> set[str]:
    """The modules that the client loads for a command line whose daemon does not answer."""
    program = (
        "import os, posix, sys; sys.argv = ['knarr', '-H', 'unix:///nonexistent/knarr.sock', *sys.argv[1:]]\n"
        "def leave(status): raise SystemExit(status)\n"
        "os._exit = posix._exit = leave\n"
        f"sys.path[:0] = {[str(ROOT), *site_packages()]!r}\n"
        "try:\n    import cli.main; cli.main.main()\n"
        "except SystemExit: pass\n"
        "finally: print('MODULES', *sorted(sys.modules), file=sys.__stdout__)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "DOCKER_HOST"}
    result = subprocess.run(
        [sys.executable, "-IS", "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    line = next((x for x in result.stdout.splitlines() if x.startswith("MODULES")), None)
    assert line is not None, f"the client left no list of modules: {result.stdout}{result.stderr}"
    return set(line.split()[1:])


def site_packages() -> list[str]:
    return [p for p in sys.path if p.endswith("site-packages")]


@pytest.mark.parametrize("arguments", HOT_COMMANDS, ids=lambda a: a[0])
def test_hot_commands_load_nothing_heavy(arguments: list[str]) -> None:
    loaded = modules_loaded(arguments)
    assert "cli.main" in loaded
    heavy = sorted(m for m in loaded if m in HEAVY)
    assert not heavy, f"knarr {' '.join(arguments)} loads {heavy}"
