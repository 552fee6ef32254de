"""Values of flags as Docker's clients check and convert them: sizes, durations, environment, labels, limits, devices, addresses.

`convert(type, text)` is called by the parser for every flag whose type is more than a string; a ValueError's text is what the user sees.
"""

from cli.client import getenv

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_UNITS = {"b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATIONS = {"ns": 1, "us": 1000, "µs": 1000, "μs": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_ULIMITS = frozenset((
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending",
    "stack",
))


def integer(text: str, bits: int = 64, signed: bool = True) -> int:
    """A whole number as Go's strconv reads it in base 0 (0x, 0o, 0b, leading 0 for octal)."""
    function = "ParseInt" if signed else "ParseUint"
    body = text[1:] if signed and text[:1] in ("+", "-") else text
    try:
        if not body or not body[0].isdigit() or not body.isascii():
            raise ValueError
        number = int(body, 8) if len(body) > 1 and body[0] == "0" and body[1].isdigit() else int(body, 0)
    except ValueError:
        raise ValueError(f'strconv.{function}: parsing "{text}": invalid syntax') from None
    if text[0] == "-":
        number = -number
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if not low <= number <= high:
        raise ValueError(f'strconv.{function}: parsing "{text}": value out of range')
    return number


def size(text: str) -> int:
    """Bytes from `64m`, `1.5g`, `100`, `2GiB`, `5 m`; powers of 1024."""
    cut = max(text.rfind(char) for char in "0123456789. ")
    if cut < 0:
        raise ValueError(f"invalid size: '{text}'")
    number, suffix = (text[:cut] if text[cut] == " " else text[:cut + 1]), text[cut + 1:].lower()
    try:
        if number != number.strip():
            raise ValueError
        value = float(number)
    except ValueError:
        raise ValueError(f'strconv.ParseFloat: parsing "{number}": invalid syntax') from None
    if value < 0:
        raise ValueError(f"invalid size: '{text}'")
    if suffix[1:] not in ("", "b", "ib") or (suffix and suffix[0] not in _UNITS) or (suffix[:1] == "b" and len(suffix) > 1):
        raise ValueError(f"invalid suffix: '{suffix}'")
    return int(value * 1024 ** _UNITS[suffix[:1] or "b"])


def swap(text: str) -> int:
    return -1 if text == "-1" else size(text)


def duration(text: str) -> int:
    """Nanoseconds from Go's duration syntax (`1h30m`, `1.5s`, `300ms`)."""
    sign = -1 if text[:1] == "-" else 1
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0
    total, at = 0.0, 0
    if not body:
        raise ValueError(f'time: invalid duration "{text}"')
    while at < len(body):
        start = at
        while at < len(body) and (body[at].isdigit() or body[at] == "."):
            at += 1
        number = body[start:at]
        start = at
        while at < len(body) and not body[at].isdigit() and body[at] != ".":
            at += 1
        unit = body[start:at]
        if not number or number == "." or number.count(".") > 1:
            raise ValueError(f'time: invalid duration "{text}"')
        if not unit:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if unit not in _DURATIONS:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{text}"')
        total += float(number) * _DURATIONS[unit]
    return sign * round(total)


def cpus(text: str) -> int:
    """Nano CPUs from a decimal or a fraction."""
    top, slash, bottom = text.partition("/")
    try:
        nano = _scaled(top) if not slash else _ratio(top, bottom)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"failed to parse {text} as a rational number") from None
    if nano is None:
        raise ValueError("value is too precise")
    return nano


def _scaled(text: str) -> "int | None":
    """10⁹ times a decimal number, None if that is not whole."""
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, part = mantissa.partition(".")
    digits = whole.lstrip("+-") + part
    if not digits.isdigit() or not digits.isascii():
        raise ValueError(text)
    shift = 9 - len(part) + (int(exponent) if exponent else 0)
    if abs(shift) > 40:
        raise ValueError(text)
    number: int = int(digits) * (-1 if mantissa[0] == "-" else 1)
    if shift >= 0:
        return int(number * 10**shift)
    return None if number % 10**-shift else number // 10**-shift


def _ratio(top: str, bottom: str) -> "int | None":
    quotient, rest = divmod(int(top) * 10**9, int(bottom))
    return None if rest else quotient


def environment(text: str) -> str:
    """`NAME=VALUE`, or `NAME` taken from the client's own environment when it is there."""
    name, equals, _ = text.partition("=")
    if not name:
        raise ValueError("invalid environment variable: " + text)
    if equals:
        return text
    from posix import environ

    return f"{text}={getenv(text)}" if name.encode() in environ else text


def label(text: str) -> str:
    name = text.partition("=")[0].lstrip()
    if not name:
        raise ValueError(f"invalid label '{text}': empty name")
    if any(char.isspace() for char in name):
        raise ValueError(f"label '{name}' contains whitespaces")
    return text


def stream(text: str) -> str:
    lower = text.lower()
    if lower not in ("stdin", "stdout", "stderr"):
        raise ValueError("valid streams are STDIN, STDOUT and STDERR")
    return lower


def extra_host(text: str) -> str:
    """`name:address` or `name=address`, as `name:address`."""
    name, separator, address = text.partition("=") if "=" in text else text.partition(":")
    if not separator or not name or ":" in name:
        raise ValueError(f'bad format for add-host: "{text}"')
    if address != "host-gateway":
        if address[:1] == "[" and address[-1:] == "]":
            address = address[1:-1]
        if not is_address(address):
            raise ValueError(f'invalid IP address in add-host: "{address}"')
    return f"{name}:{address}"


def is_address(text: str) -> bool:
    from _socket import AF_INET, AF_INET6, inet_pton

    for family in (AF_INET, AF_INET6):
        try:
            inet_pton(family, text)
            return True
        except OSError:
            continue
    return False


def address(text: str) -> str:
    text = text.strip()
    if not is_address(text):
        raise ValueError(f"IP address is not correctly formatted: {text}")
    return text


def dns_search(text: str) -> str:
    text = text.strip(" ")
    if text == ".":
        return text
    return domain(text)


def domain(text: str) -> str:
    ok = all(c.isalnum() or c in "-." for c in text) and any(c.isalpha() for c in text) and len(text) < 255
    if not ok or text[0] in "-." or text[-1] == "-":
        raise ValueError(f"{text} is not a valid domain")
    return text


def link(text: str) -> str:
    parts = text.split(":")
    if not text:
        raise ValueError("empty string specified for links")
    if len(parts) > 2:
        raise ValueError("bad format for links: " + text)
    return text


def sysctl(text: str) -> str:
    name = text.partition("=")[0]
    known = name.startswith(("net.", "fs.mqueue.")) or name in (
        "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
        "kernel.shm_rmid_forced")
    if "=" not in text or not known:
        raise ValueError(f"sysctl '{text}' is not allowed")
    return text


def ulimit(text: str) -> "dict[str, Any]":
    name, equals, limits = text.partition("=")
    if not equals:
        raise ValueError("invalid ulimit argument: " + text)
    if name not in _ULIMITS:
        raise ValueError("invalid ulimit type: " + name)
    values = limits.split(":")
    if len(values) > 2:
        raise ValueError(f"too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`")
    soft = integer(values[0])
    hard = integer(values[1]) if len(values) == 2 else soft
    if hard != -1 and (soft == -1 or soft > hard):
        shown = f"soft: -1 (unlimited), hard: {hard}" if soft == -1 else f"{soft} > {hard}"
        raise ValueError("ulimit soft limit must be less than or equal to hard limit: " + shown)
    return {"Name": name, "Soft": soft, "Hard": hard}


def weight_device(text: str) -> "dict[str, Any]":
    path, colon, weight = text.partition(":")
    if not colon or not path:
        raise ValueError("bad format: " + text)
    if not path.startswith("/dev/"):
        raise ValueError("bad format for device path: " + text)
    if not weight.isdigit() or (int(weight) and not 10 <= int(weight) <= 1000):
        raise ValueError("invalid weight for device: " + text)
    return {"Path": path, "Weight": int(weight)}


def _throttle(text: str, rate: int) -> "dict[str, Any]":
    path, colon, _ = text.partition(":")
    if not colon or not path:
        raise ValueError("bad format: " + text)
    if not path.startswith("/dev/"):
        raise ValueError("bad format for device path: " + text)
    return {"Path": path, "Rate": rate}


def throttle_bytes(text: str) -> "dict[str, Any]":
    try:
        rate = size(text.partition(":")[2])
    except ValueError:
        rate = -1
    result = _throttle(text, rate)
    if rate < 0:
        form = "<device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb"
        raise ValueError(f"invalid rate for device: {text}. The correct format is {form}")
    return result


def throttle_operations(text: str) -> "dict[str, Any]":
    number = text.partition(":")[2]
    result = _throttle(text, int(number) if number.isdigit() else 0)
    if not number.isdigit():
        form = "<device-path>:<number>. Number must be a positive integer"
        raise ValueError(f"invalid rate for device: {text}. The correct format is {form}")
    return result


def cgroup_rule(text: str) -> str:
    parts = text.split()
    major, _, minor = parts[1].partition(":") if len(parts) == 3 else ("", "", "")
    numbers = all(part == "*" or part.isdigit() for part in (major, minor))
    modes = len(parts) == 3 and set(parts[2]) <= set("rwm") and len(parts[2]) <= 3
    if not modes or parts[0] not in ("a", "b", "c") or not numbers:
        raise ValueError(f"invalid device cgroup format '{text}'")
    return text


def key_value(text: str) -> "tuple[str, str]":
    """`NAME=VALUE` of a map; the value is empty without `=`."""
    name, _, value = text.partition("=")
    return name, value


def filter_(text: str) -> "tuple[str, str]":
    name, equals, value = text.partition("=")
    if not text:
        return "", ""
    if not equals:
        raise ValueError("bad format of filter (expected name=value)")
    return name.strip().lower(), value.strip()


def strings(text: str) -> "list[str]":
    """One line of comma-separated values."""
    if '"' not in text:
        return text.split(",") if text else []
    return csv_fields(text)


def csv_fields(text: str) -> "list[str]":
    """The fields of one CSV line (RFC 4180)."""
    fields, at = [], 0
    while at <= len(text):
        if text[at:at + 1] == '"':
            value, at = _quoted(text, at + 1)
        else:
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            value, at = text[at:end], end
            if '"' in value:
                raise ValueError(f'parse error on line 1, column {at}: bare " in non-quoted-field')
        fields.append(value)
        at += 1
    return fields


def _quoted(text: str, at: int) -> "tuple[str, int]":
    value = ""
    while True:
        end = text.find('"', at)
        if end < 0:
            raise ValueError(f'parse error on line 1, column {len(text)}: extraneous or missing " in quoted-field')
        value += text[at:end]
        if text[end + 1:end + 2] != '"':
            break
        value += '"'
        at = end + 2
    if text[end + 1:end + 2] not in ("", ","):
        raise ValueError(f'parse error on line 1, column {end + 1}: extraneous or missing " in quoted-field')
    return value, end + 1


def boolean(text: str) -> bool:
    from cli.flags import FALSE, TRUE

    if text not in TRUE + FALSE:
        raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')
    return text in TRUE


def mount(text: str) -> "dict[str, Any]":
    from cli.mounts import mount as parse_mount

    return parse_mount(text)


def network(text: str) -> "dict[str, Any]":
    from cli.endpoints import network as parse_network

    return parse_network(text)


def gpus(text: str) -> "dict[str, Any]":
    from cli.devices import gpus as parse_gpus

    return parse_gpus(text)


CONVERTERS: "dict[str, Callable[[str], Any]]" = {
    "bool": boolean, "int": integer, "int64": integer, "uint16": lambda text: integer(text, 16, False),
    "uint64": lambda text: integer(text, 64, False), "uint": lambda text: integer(text, 64, False), "bytes": size, "swap": swap,
    "duration": duration, "decimal": cpus, "list": str, "map": key_value, "strings": strings, "filter": filter_, "env": environment,
    "label": label, "stream": stream, "host": extra_host, "ip": address, "search": dns_search, "link": link,
    "sysctl": lambda text: key_value(sysctl(text)), "ulimit": ulimit, "weight": weight_device, "bps": throttle_bytes,
    "iops": throttle_operations, "rule": cgroup_rule, "mount": mount, "network": network, "gpu-request": gpus, "pair": key_value,
}


def convert(kind: str, text: str) -> "Any":
    """The value of a flag of that type. Raises ValueError with Docker's words."""
    return CONVERTERS[kind](text)
