"""What makes a build fail that is neither the Dockerfile's wording nor this host's fault."""

from __future__ import annotations

from builder.language.errors import DockerfileError
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


def placed(error: KnarrError | OSError, line: int) -> KnarrError:
    """An error that says which line of the Dockerfile it is about, unless it says so already."""
    if isinstance(error, DockerfileError) or (isinstance(error, BuildFault) and error.line):
        return error
    if isinstance(error, OSError):
        return BuildFault(str(error), line=line)
    found = BuildFault(error.message, code=getattr(error, "code", 0), line=line, hint=error.hint)
    found.status = error.status
    return found


def first_error(group: BaseExceptionGroup[BaseException]) -> Exception | None:
    """What went wrong first, when everything in a group is an error and not a cancellation."""
    for error in group.exceptions:
        found = first_error(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, KnarrError | OSError):
            return found
    return None
