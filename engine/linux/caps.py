"""Capabilities: names and numbers, Docker's default set, and what `--cap-add`, `--cap-drop` and `--privileged` make of it.

Owns the resolution of names to a set; does not change any process. Follows capabilities(7) and Docker's documented rules for its options.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

from engine.errors import InvalidParameter

# linux/capability.h, in the order of their numbers.
_NAMES = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
NAMES = tuple("CAP_" + word for word in _NAMES.split())
NUMBERS = {name: number for number, name in enumerate(NAMES)}

# What Docker leaves to a container that asks for nothing.
_DEFAULT = """
    CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL
    AUDIT_WRITE
"""
DEFAULT = tuple("CAP_" + word for word in _DEFAULT.split())


def mask(names: Iterable[str]) -> int:
    """Bit set of capabilities as the kernel counts them; KeyError for a name that is not in `NUMBERS`."""
    bits = 0
    for name in names:
        bits |= 1 << NUMBERS[name]
    return bits


def from_mask(bits: int) -> frozenset[str]:
    """Names of the bits that this table knows; bits of newer kernels are left out."""
    return frozenset(name for number, name in enumerate(NAMES) if bits >> number & 1)


@functools.cache
def available() -> frozenset[str]:
    """What this process may pass on: permitted and still in the bounding set (which also leaves out what the kernel lacks)."""
    fields = {}
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            key, _, value = line.partition(":")
            if key in ("CapPrm", "CapBnd"):
                fields[key] = int(value, 16)
    return from_mask(fields["CapPrm"] & fields["CapBnd"])


def normalize(name: str, *, usable: Collection[str] | None = None) -> str:
    """`net_admin`, `NET_ADMIN` or `CAP_NET_ADMIN` to `CAP_NET_ADMIN`; `ALL` stays.

    Raises InvalidParameter for an unknown name, or for one outside `usable` (default: `available()`).
    """
    upper = name.strip().upper()
    if upper in ("ALL", "CAP_ALL"):
        return "ALL"
    full = upper if upper.startswith("CAP_") else "CAP_" + upper
    if full not in NUMBERS:
        raise InvalidParameter(f'unknown capability: "{name}"')
    if full not in (available() if usable is None else usable):
        raise InvalidParameter(f'capability not supported by your kernel or not available in the current environment: "{name}"')
    return full


def resolve(
    add: Iterable[str] = (), drop: Iterable[str] = (), *, privileged: bool = False, usable: Collection[str] | None = None
) -> tuple[str, ...]:
    """The capabilities of a container, in the order of their numbers.

    As Docker: `privileged` gives all; adding ALL gives all but the dropped ones; dropping ALL leaves the added ones; otherwise the
    default set without the dropped ones, then the added ones (so a name in both is kept). Never more than `usable` (default:
    `available()`): a default capability that the daemon itself lacks is left out, one asked for by name is refused with InvalidParameter.
    """
    have = available() if usable is None else usable
    added = {normalize(name, usable=have) for name in add}
    # A capability that cannot be had may still be dropped by name.
    dropped = {normalize(name, usable=NAMES) for name in drop}
    if privileged:
        chosen = set(have)
    elif "ALL" in added:
        chosen = set(have) - dropped
    elif "ALL" in dropped:
        chosen = added
    else:
        chosen = (set(DEFAULT) - dropped) | added
    return tuple(name for name in NAMES if name in chosen and name in have)
