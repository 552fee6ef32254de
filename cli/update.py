"""`knarr update`: other limits and another restart policy for containers."""

from cli.client import Client, Failure, quote
from cli.codec import loads
from cli.create import restart_policy
from cli.flags import Command, parse
from cli.streams import output

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

UPDATE = Command("update", "[OPTIONS] CONTAINER [CONTAINER...]", {
    "blkio-weight": "uint16", "cpu-period": "int64", "cpu-quota": "int64", "cpu-rt-period": "int64", "cpu-rt-runtime": "int64",
    "cpu-shares": "int64", "cpus": "decimal", "cpuset-cpus": "string", "cpuset-mems": "string", "memory": "bytes",
    "memory-reservation": "bytes", "memory-swap": "bytes:swap", "pids-limit": "int64", "restart": "string",
}, {"c": "cpu-shares", "m": "memory"}, 1)

_FIELDS = {
    "blkio-weight": "BlkioWeight", "cpu-period": "CpuPeriod", "cpu-quota": "CpuQuota", "cpu-rt-period": "CpuRealtimePeriod",
    "cpu-rt-runtime": "CpuRealtimeRuntime", "cpu-shares": "CpuShares", "cpus": "NanoCpus", "cpuset-cpus": "CpusetCpus",
    "cpuset-mems": "CpusetMems", "memory": "Memory", "memory-reservation": "MemoryReservation", "memory-swap": "MemorySwap",
    "pids-limit": "PidsLimit",
}


def update(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(UPDATE, argv)
    if not given:
        raise Failure("you must provide one or more flags when using this command")
    body: dict[str, Any] = {_FIELDS[flag]: value for flag, value in given.items() if flag in _FIELDS}
    if "restart" in given:
        body["RestartPolicy"] = restart_policy(given["restart"])
    warnings, errors = [], []
    for ref in names:
        try:
            answer = loads(client.post(f"/containers/{quote(ref)}/update", body))
        except Failure as failure:
            errors.append(failure.text)
        else:
            output(ref + "\n")
            warnings += answer.get("Warnings") or ()
    if warnings:
        output("\n".join(warnings) + "\n")
    if errors:
        raise Failure("\n".join(errors))
    return 0
