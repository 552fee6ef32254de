"""How Docker's JSON spells field names: Pascal case with a few words in capitals. Pure.

Source: the Engine API's interface description (swagger), version 1.51.
"""

from __future__ import annotations

_WORDS = {"id": "ID", "ip": "IP", "ipam": "IPAM", "ipv4": "IPv4", "ipv6": "IPv6", "dns": "DNS", "os": "OS", "url": "URL", "io": "IO"}


def pascal(field: str) -> str:
    """`cpu_quota` -> `CpuQuota`; words that Docker writes in capitals stay so (`exec_id` -> `ExecID`)."""
    return "".join(_WORDS.get(word, word[:1].upper() + word[1:]) for word in field.split("_"))
