"""The flags of one instruction: `--name=value`, with the errors of BuildKit. Pure."""

from __future__ import annotations

from builder.language.errors import shortened
from builder.language.suggest import hint


class FlagError(ValueError):
    """A flag that is wrong. `word`: what to point at; `hint`: what may have been meant."""

    def __init__(self, message: str, *, word: str, hint: str = "") -> None:
        super().__init__(message)
        self.word = word
        self.hint = hint


class Flags:
    """`flags` as `lines.split` gives them, read: `text` take a value once, `many` any number of times, `switches` are true or false.

    Raises FlagError.
    """

    def __init__(
        self, flags: tuple[str, ...], *, text: tuple[str, ...] = (), many: tuple[str, ...] = (), switches: tuple[str, ...] = ()
    ) -> None:
        self._text: dict[str, str] = {}
        self._many: dict[str, list[str]] = {name: [] for name in many}
        self._switches: dict[str, bool] = {}
        known = (*text, *switches, *many)
        for flag in flags:
            name, equals, value = flag[2:].partition("=")
            if name not in known:
                raise FlagError(f"unknown flag: {shortened(name)}", word=f"--{name}", hint=hint(name, known))
            if name in self._text or name in self._switches:
                raise FlagError(f"duplicate flag specified: {name}", word=f"--{name}")
            if (equals and name in switches and not value) or (not equals and name not in switches):
                raise FlagError(f"missing a value on flag: {name}", word=f"--{name}")
            if name in many:
                self._many[name].append(value)
            elif name in text:
                self._text[name] = value
            elif value.lower() not in ("", "true", "false"):
                raise FlagError(f"expecting boolean value for flag {name}, not: {shortened(value)}", word=f"--{name}")
            else:
                self._switches[name] = value.lower() != "false"

    def text(self, name: str) -> str:
        """The value, "" when the flag was not given."""
        return self._text.get(name, "")

    def many(self, name: str) -> tuple[str, ...]:
        """The values in order."""
        return tuple(self._many[name])

    def switch(self, name: str) -> bool | None:
        """True or false, None when the flag was not given."""
        return self._switches.get(name)
