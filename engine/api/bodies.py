"""JSON bodies into the structs of `spec.docker`, with what Go's decoder forgives: null for any member, member names in any case.

The usual body goes straight through msgspec. One that it refuses, or in which a quick look finds something unusual, goes the slow way:
decoded without types, fitted to the struct, checked for what would hurt later (NUL in strings, numbers beyond 64 bits), converted.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import inspect

from engine.errors import InvalidParameter

T = TypeVar("T")

_UNUSUAL = re.compile(rb'"[a-z][A-Za-z]*"\s*:|\\u0000|[0-9]{19}')
_INT64 = 2**63


class Body(Generic[T]):
    """Decodes one kind of body."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._decode = msgspec.json.Decoder(kind).decode

    def parse(self, raw: bytes) -> T:
        """A body as a struct. Raises InvalidParameter in words close to dockerd's."""
        if not raw:
            raise InvalidParameter("invalid JSON: got EOF while reading request body")
        try:
            if _UNUSUAL.search(raw) is None:
                try:
                    return self._decode(raw)
                except msgspec.ValidationError:
                    pass  # perhaps a null
            return self._slow(raw)
        except msgspec.ValidationError as error:
            raise InvalidParameter(f"invalid JSON: {error}")
        except msgspec.DecodeError as error:
            raise InvalidParameter("unexpected content after JSON" if "trailing" in str(error) else f"invalid JSON: {error}")
        except RecursionError:
            raise InvalidParameter("invalid JSON: exceeded max depth")
        except UnicodeDecodeError:
            raise InvalidParameter("invalid JSON: not valid UTF-8")

    def _slow(self, raw: bytes) -> T:
        value = msgspec.json.decode(raw)
        _check(value)
        fitted = _fit(value, inspect.type_info(self._kind))
        return msgspec.convert(fitted, self._kind)


def _check(value: Any) -> None:
    """Refuse what no field may hold."""
    if isinstance(value, str):
        if "\0" in value:
            raise InvalidParameter(f"invalid JSON: a NUL byte in {value[:100]!r}")
    elif isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise InvalidParameter(f"invalid JSON: number {str(value)[:40]} is out of range")
    elif isinstance(value, list):
        for item in value:
            _check(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key)
            _check(item)


def _fit(value: Any, wanted: inspect.Type) -> Any:
    """`value` with the members of structs spelled as the struct spells them, and without nulls where it takes none."""
    if isinstance(wanted, inspect.UnionType):
        for option in wanted.types:
            if isinstance(value, dict) and isinstance(option, inspect.StructType | inspect.DictType):
                return _fit(value, option)
            if isinstance(value, list) and isinstance(option, inspect.ListType):
                return _fit(value, option)
        return value
    if isinstance(wanted, inspect.StructType) and isinstance(value, dict):
        fields = _fields(wanted.cls)
        fitted = {}
        for key, item in value.items():
            field = fields.get(key.lower())
            if field is not None and (item is not None or field[2]):
                fitted[field[0]] = _fit(item, field[1])
        return fitted
    if isinstance(wanted, inspect.DictType) and isinstance(value, dict):
        return {key: _fit(item, wanted.value_type) for key, item in value.items()}
    if isinstance(wanted, inspect.ListType) and isinstance(value, list):
        return [_fit(item, wanted.item_type) for item in value]
    return value


@functools.cache
def _fields(struct: type) -> dict[str, tuple[str, inspect.Type, bool]]:
    """Lower-case name -> (name, type, whether null is a value of it)."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    found = {}
    for field in info.fields:
        nullable = isinstance(field.type, inspect.UnionType) and field.type.includes_none
        found[field.encode_name.lower()] = (field.encode_name, field.type, nullable)
    return found
