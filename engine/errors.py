"""The error tree: one class for each meaning that the Engine API gives to an HTTP status.

Owns the mapping from meaning to status; knows nothing of HTTP itself. A message says what was being done, to what, and the
cause; `hint` says what the user can do about it and is appended in brackets when the error is shown.
"""

from __future__ import annotations


class KnarrError(Exception):
    """Base of all errors shown to a user. `status` is the HTTP status the Engine API uses for the meaning."""

    status = 500

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidParameter(KnarrError):
    """The request is malformed or a value is out of range: 400."""

    status = 400


class Unauthorized(KnarrError):
    """Credentials are missing or wrong: 401."""

    status = 401


class Forbidden(KnarrError):
    """The request is understood and refused: 403."""

    status = 403


class NotFound(KnarrError):
    """The named object does not exist: 404."""

    status = 404


class Conflict(KnarrError):
    """The object is in a state that does not allow it, or the name is taken: 409."""

    status = 409


class NotModified(KnarrError):
    """Nothing to do, the object is already in that state: 304, sent without a body."""

    status = 304


class NotImplementedYet(KnarrError):
    """A documented option or endpoint that this version does not have: 501. The message is `not implemented: WHAT`."""

    status = 501

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what if what.startswith("not implemented") else f"not implemented: {what}", hint=hint)


class Unavailable(KnarrError):
    """Temporarily impossible, e.g. while shutting down: 503."""

    status = 503


class Damaged(KnarrError):
    """Stored data does not match its digest or cannot be read; the object was set aside: 500."""


class DiskFull(KnarrError):
    """The file system has no room: 500."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="free some space on the file system of --data-root")


class LaunchError(KnarrError):
    """A plan failed while it ran. Carries the failing operation, so that the exit code (126, 127, 125) can be chosen.

    `op` is the operation's name (as in `runtime.ops`), `index` its place in the plan, `errno` the kernel's error number.
    """

    status = 400

    def __init__(self, message: str, *, op: str = "", index: int = -1, errno: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.op = op
        self.index = index
        self.errno = errno
