"""Write engine/linux/syscalls.py from the kernel's user-space headers.

usage: generate_syscalls.py UAPI_FOLDER KERNEL > engine/linux/syscalls.py

UAPI_FOLDER holds x86/asm, arm/asm and arm64/asm, as Debian's linux-libc-dev has them in /usr/lib/linux/uapi (trixie and newer).
"""

from __future__ import annotations

import pathlib
import re
import sys
import textwrap

SOURCES = {
    "x86_64": "x86/asm/unistd_64.h", "i386": "x86/asm/unistd_32.h", "x32": "x86/asm/unistd_x32.h",
    "aarch64": "arm64/asm/unistd_64.h", "arm": "arm/asm/unistd-eabi.h",
}  # fmt: skip
# ARM's private calls and its own names of generic calls stand in asm/unistd.h, outside the generated header.
ARM_EXTRA = {"breakpoint": 0x0F0001, "cacheflush": 0x0F0002, "set_tls": 0x0F0005, "sync_file_range2": 341}

HEAD = '''"""System call numbers by architecture, generated from the headers of Linux {kernel} by packaging/generate_syscalls.py: edit that.

A table is names in the order of their numbers; `@N` says that the next name has number N. Names are the kernel's `__NR_` names.
"""

from __future__ import annotations

import functools

_TABLES = {{
'''
TAIL = '''}


@functools.cache
def numbers(arch: str) -> dict[str, int]:
    """Name to number for x86_64, i386, x32 (with bit 30 set, as seccomp sees it), aarch64 and arm (EABI); KeyError for another."""
    table: dict[str, int] = {}
    following = 0
    for word in _TABLES[arch].split():
        if word[0] == "@":
            following = int(word[1:])
        else:
            table[word] = following
            following += 1
    return table
'''


def read(path: pathlib.Path) -> dict[str, int]:
    found = {}
    for name, value in re.findall(r"^#define __NR_(\w+)\s+(.+)$", path.read_text(), re.M):
        expression = value.replace("__X32_SYSCALL_BIT", "0x40000000").replace("__NR_SYSCALL_BASE", "0").strip("() ")
        if match := re.fullmatch(r"(0x[0-9a-f]+|\d+)(?:\s*\+\s*(\d+))?", expression):
            found[name] = int(match[1], 0) + int(match[2] or 0)
    found.pop("syscalls", None)
    return found


def words(table: dict[str, int]) -> str:
    out, following = [], 0
    for name, number in sorted(table.items(), key=lambda item: (item[1], item[0])):
        if number != following:
            out.append(f"@{number}")
        out.append(name)
        following = number + 1
    return " ".join(out)


def main() -> None:
    folder, kernel = pathlib.Path(sys.argv[1]), sys.argv[2]
    sys.stdout.write(HEAD.format(kernel=kernel))
    for arch, source in SOURCES.items():
        table = read(folder / source) | (ARM_EXTRA if arch == "arm" else {})
        sys.stdout.write(f'    "{arch}": """\n{textwrap.fill(words(table), 138)}\n""",\n')
    sys.stdout.write(TAIL)


if __name__ == "__main__":
    main()
