"""`--platform os/arch[/variant]` as containerd's platforms package reads it, and as the API wants it (the OCI platform object as JSON)."""

from posix import uname

from cli.client import Failure
from cli.codec import dumps

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

_PART = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_PATTERN = '"^[A-Za-z0-9_.-]+$"'
# names that Go knows (go/build's lists), so that a single word can be told to be one or the other
_SYSTEMS = frozenset(
    "aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd plan9 solaris windows zos wasip1".split()
)
_MACHINES = frozenset(
    "386 amd64 amd64p32 arm armbe arm64 arm64be loong64 mips mipsle mips64 mips64le mips64p32 mips64p32le ppc riscv riscv64 ppc64 ppc64le"
    " s390 s390x sparc sparc64 wasm".split()
)
_SPELLINGS = {"i386": ("386", ""), "x86_64": ("amd64", ""), "x86-64": ("amd64", ""), "aarch64": ("arm64", ""), "armhf": ("arm", "v7"),
    "armel": ("arm", "v6")}


def _machine(name: str, variant: str) -> "tuple[str, str]":
    """Architecture and variant in Go's spelling."""
    name, variant = name.lower(), variant.lower()
    if name in _SPELLINGS:
        name, implied = _SPELLINGS[name]
        variant = implied or ("" if name != "arm64" else variant)
    if name == "arm64" and variant in ("8", "v8"):
        variant = ""
    elif name == "arm" and variant in ("", "7"):
        variant = "v7"
    elif name == "arm" and variant in ("5", "6", "8"):
        variant = "v" + variant
    return name, variant


def _host() -> "tuple[str, str]":
    return _machine("arm" if uname().machine.startswith("armv7") else uname().machine, "")


def parse(text: str) -> "dict[str, Any]":
    """The members `architecture`, `os` and, where there is one, `variant`. A ValueError's text is Docker's."""
    parts = text.split("/")
    for part in parts:
        if not part or not _PART.issuperset(part):
            raise ValueError(f'"{part}" is an invalid component of "{text}": platform specifier component must match {_PATTERN}: '
                "invalid argument")
    variant = ""
    if len(parts) == 1:
        system, (machine, variant) = parts[0].lower(), _machine(parts[0], "")
        if system in _SYSTEMS or system == "macos":
            machine, variant = _host()
        elif machine in _MACHINES:
            system = "linux"
        else:
            raise ValueError(f'"{text}": unknown operating system or architecture: invalid argument')
    elif len(parts) <= 3:
        system = parts[0].lower()
        machine, variant = _machine(parts[1], parts[2] if len(parts) == 3 else "")
        if len(parts) == 3 and machine == "arm64" and not variant:
            variant = "v8"
    else:
        raise ValueError(f'"{text}": cannot parse platform specifier: invalid argument')
    if machine == "arm" and variant == "v7" and len(parts) < 3:
        variant = ""  # the default of the architecture
    found = {"architecture": machine, "os": "darwin" if system == "macos" else system}
    return found | {"variant": variant} if variant else found


def query_value(text: str, words: str = "invalid platform: ") -> str:
    """The query parameter; "" when none was given. Raises Failure, its text starting with `words`."""
    if not text:
        return ""
    try:
        return dumps(parse(text))
    except ValueError as error:
        raise Failure(words + str(error)) from None
