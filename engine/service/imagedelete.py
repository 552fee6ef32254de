"""What `rmi` removes and what it refuses. Pure decisions over an image, its names and its users; changes nothing itself.

Follows dockerd's rules and wording (moby daemon/images, "image_delete"), which scripts match on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from engine.errors import Conflict
from engine.spec.digest import short
from engine.spec.reference import Reference


class _State(Protocol):
    @property
    def running(self) -> bool: ...


class User(Protocol):
    """A container made from an image; a `ContainerRecord` is one."""

    @property
    def id(self) -> str: ...
    @property
    def state(self) -> _State: ...


class Decision(msgspec.Struct, frozen=True):
    """Names to take away, in order, and whether the image itself goes."""

    untag: tuple[Reference, ...]
    delete: bool


def decide(id: str, names: Sequence[Reference], asked: str, reference: Reference | None, users: Sequence[User], *, force: bool) -> Decision:
    """What to do for `rmi asked`. `reference` is the name that `asked` stood for, None when it was an identifier. Raises Conflict."""
    if reference is None:
        return _by_id(id, names, users, force)
    return _by_name(id, names, asked, reference, users, force)


def _by_name(id: str, names: Sequence[Reference], asked: str, reference: Reference, users: Sequence[User], force: bool) -> Decision:
    if not force and users and _single(names):
        raise Conflict(
            f'conflict: unable to remove repository reference "{asked}" (must force) - '
            f"container {short(users[0].id)} is using its referenced image {short(id)}"
        )
    untag = [reference]
    rest = [name for name in names if name != reference]
    if not reference.digest and not any(name.name == reference.name and not name.digest for name in rest):
        # With the last tag of a repository its digests go too.
        untag += [name for name in rest if name.name == reference.name]
        rest = [name for name in rest if name.name != reference.name]
    if rest:
        return Decision(tuple(untag), False)
    # The name goes in any case; the image follows unless someone runs it.
    if _blocked(users, force) is not None:
        return Decision(tuple(untag), False)
    return Decision(tuple(untag), True)


def _by_id(id: str, names: Sequence[Reference], users: Sequence[User], force: bool) -> Decision:
    running = next((user for user in users if user.state.running), None)
    if running is not None:
        raise _conflict(id, "cannot be forced", f"image is being used by running container {short(running.id)}")
    if not force and names and not _single(names):
        raise _conflict(id, "must be forced", "image is referenced in multiple repositories")
    if not force and users:
        raise _conflict(id, "must be forced", f"image is being used by stopped container {short(users[0].id)}")
    return Decision(tuple(names), True)


def _conflict(id: str, how: str, why: str) -> Conflict:
    return Conflict(f"conflict: unable to delete {short(id)} ({how}) - {why}")


def _blocked(users: Sequence[User], force: bool) -> User | None:
    return next((user for user in users if user.state.running or not force), None)


def _single(names: Sequence[Reference]) -> bool:
    """One tag at most, and everything in one repository."""
    return sum(not name.digest for name in names) <= 1 and len({name.name for name in names}) == 1
