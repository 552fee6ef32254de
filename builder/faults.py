"""What makes a build fail that is neither the Dockerfile's wording nor this host's fault."""

from __future__ import annotations

from engine.errors import KnarrError


class BuildFault(KnarrError):
    """A step failed: `code` is the exit status of its process, 0 when there was none; `line` of the Dockerfile, 0 when it is not
    known; `excerpt`: lines around it, for people."""

    status = 500

    def __init__(self, message: str, *, code: int = 0, line: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.line = line
        self.excerpt = ""
