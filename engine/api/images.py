"""`/images/...`: parse, call `engine.images`, render. Engine API reference 1.51, "Image"; `fromhost` is an extension."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec

from engine.api.bodies import Body
from engine.api.call import Call
from engine.api.views import images as views
from engine.errors import InvalidParameter, KnarrError, NotImplementedYet, Unauthorized
from engine.service import imagefilter, imagemanifests
from engine.service.df import shared_sizes
from engine.spec import reference
from engine.spec.digest import check_digest
from engine.spec.hostimage import HostImage

if TYPE_CHECKING:
    from engine.registry.auth import Credentials


class _Platform(msgspec.Struct):
    """The JSON that clients since 1.48 put into `platform`."""

    os: str = "linux"
    architecture: str = ""
    variant: str = ""


_platform = Body(_Platform)
_HOST_IMAGE = Body(HostImage)


def _platforms(call: Call, name: str = "platform") -> list[str]:
    """A parameter as `os/arch[/variant]` texts, however they were written. Raises InvalidParameter."""
    return [_platform_text(text) for text in call.query.texts(name) if text]


def _platform_text(text: str) -> str:
    if not text.startswith("{"):
        return text
    parsed = _platform.parse(text.encode())
    return "/".join(filter(None, (parsed.os, parsed.architecture, parsed.variant)))


def _wanted_platform(call: Call) -> str:
    """`platform` of an endpoint that takes one; "" when it is not given. Raises InvalidParameter."""
    given = _platforms(call)
    if len(given) > 1:
        raise InvalidParameter("multiple platform parameters not supported")
    return given[0] if given else ""


async def listing(call: Call) -> None:
    """GET /images/json"""
    query, images = call.query, call.engine.images
    filters = query.filters()
    filters.check(imagefilter.KEYS)
    found = images.list(filters, all=query.flag("all"))
    shared = shared_sizes(images, images.list()) if query.flag("shared-size") else {}
    using = call.engine.containers.using
    shown = [views.summary(image, call.version, shared=shared.get(image.id, -1), containers=len(using(image.id))) for image in found]
    if call.version >= (1, 48):
        targets = await imagemanifests.described(images, [imagemanifests.target_of(images, image) for image in found])
        for one, target in zip(shown, targets, strict=True):
            one["Descriptor"] = views.descriptor(target)
    if query.flag("manifests") and call.version >= (1, 47):
        for one, image in zip(shown, found, strict=True):
            one["Manifests"] = [views.manifest(summary) for summary in await imagemanifests.summaries(images, image)]
    await call.json(shown)


async def create(call: Call) -> None:
    """POST /images/create: `fromSrc` imports a root file system, `fromImage` pulls."""
    query = call.query
    image, source = query.text("fromImage"), query.text("fromSrc")
    if image:
        await pull(call)
        return
    if not source:
        raise InvalidParameter("creating an image: one of fromImage and fromSrc is needed")
    if source != "-":
        raise NotImplementedYet("import from a URL", hint="download it, and import the file")
    lines = call.engine.archives.import_(
        call.exchange.chunks(),
        repo=query.text("repo"),
        tag=query.text("tag"),
        message=query.text("message"),
        changes=query.texts("changes"),
        platform=_wanted_platform(call),
    )
    await call.lines(lines)


async def pull(call: Call) -> None:
    """POST /images/create with `fromImage`; `tag` may be a digest. `limit-rate` (bytes per second) and `from` (another Knarr daemon's
    address) are extensions."""
    from engine.service.pull import Options

    query = call.query
    name, all_tags = _pulled(query.text("fromImage"), query.text("tag"))
    options = Options(
        platform=_wanted_platform(call), credentials=_credentials(call), all_tags=all_tags, limit_rate=query.integer("limit-rate") or 0,
        peer=query.text("from"),
    )  # fmt: skip
    await _transfer(call, call.engine.pulls.pull(name, options))


async def push(call: Call) -> None:
    """POST /images/{name}/push; without `tag` every tag of the repository. `limit-rate` (bytes per second) and `to` (another Knarr daemon's
    address) are extensions."""
    from engine.service.pull import Options

    name, all_tags = _pulled(call.name, call.query.text("tag"))
    options = Options(
        platform=_wanted_platform(call), credentials=_credentials(call), all_tags=all_tags,
        limit_rate=call.query.integer("limit-rate") or 0, peer=call.query.text("to"),
    )  # fmt: skip
    await call.exchange.body()  # old clients send credentials here too
    await _transfer(call, call.engine.pushes.push(name, options))


async def _transfer(call: Call, lines: AsyncIterator[bytes]) -> None:
    """Answer with the lines of a pull or push, which ends when its client goes."""
    try:
        async with call.exchange.while_connected():
            await call.lines(lines)
    except Unauthorized as error:
        # dockerd's status: a client takes a 401 for an invitation to ask its user for a password.
        raise KnarrError(error.message, hint=error.hint) from error


def _pulled(image: str, tag: str) -> tuple[reference.Reference, bool]:
    """The name to pull, and whether all tags of its repository are meant: as dockerd, when neither tag nor digest is given."""
    name = reference.parse(image.removesuffix(":"))
    if tag:
        name = name.with_digest(tag) if ":" in tag else name.with_tag(tag)
        if name.digest:
            check_digest(name.digest)
    return name, not name.tag and not name.digest


def _credentials(call: Call) -> Credentials | None:
    """Who the client is at the registry, by X-Registry-Auth."""
    from engine.spec.docker.registry import credentials

    return credentials(call.exchange.headers.get(b"x-registry-auth", b"").decode("latin-1"))


async def load(call: Call) -> None:
    """POST /images/load; `platform` may be repeated, as since 1.52."""
    lines = call.engine.archives.load(call.exchange.chunks(), quiet=call.query.flag("quiet"), platform=_platforms(call))
    await call.lines(lines)


async def save(call: Call) -> None:
    """GET /images/{name}/get and GET /images/get?names=…; `platform` may be repeated, as since 1.52. `since` is an extension: an image
    whose layers are left out."""
    exchange = call.exchange
    names = [call.name] if call.name else call.query.texts("names")
    with call.engine.archives.save(names, _platforms(call), call.query.text("since")) as archive:
        await archive.check()
        await exchange.stream(content_type="application/x-tar")
        await archive.write(exchange)
        await exchange.end()


async def from_host(call: Call) -> None:
    """POST /images/fromhost, an extension: an image of programs of this host and the libraries that they need."""
    wanted = await call.body(_HOST_IMAGE)
    if wanted is None:
        raise InvalidParameter("making an image from this host: no program was given")
    image = await call.engine.archives.from_host(wanted)
    await call.json({"Id": image.id, "RepoTags": image.repo_tags}, 201)


# docker-compose 1 asks for the newest version that there is and then for a member that went with 1.45; without it it replaces no container.
_OLD_COMPOSE = b"docker-compose/1."


async def inspect(call: Call) -> None:
    """GET /images/{name}/json"""
    images, wanted = call.engine.images, _wanted_platform(call)
    with_manifests = call.query.flag("manifests") and call.version >= (1, 48)
    if with_manifests and wanted:
        raise InvalidParameter("conflicting options: manifests and platform options cannot both be set")
    image = images.get(call.name, wanted)
    named, reference = images.find(call.name)
    if image is not named:  # another platform's: it has the name as well
        image = msgspec.structs.replace(image, repo_tags=named.repo_tags, repo_digests=named.repo_digests)
    shown = views.inspect(image, call.version, layers=images.layer_folders(image))
    if call.exchange.headers.get(b"user-agent", b"").startswith(_OLD_COMPOSE):
        shown |= views.container_config(call.version)
    if call.version >= (1, 48):
        (target,) = await imagemanifests.described(images, [imagemanifests.target_of(images, image, reference)])
        shown["Descriptor"] = views.descriptor(target)
    if with_manifests:
        shown["Manifests"] = [views.manifest(one) for one in await imagemanifests.summaries(images, image, reference)]
    await call.json(shown)


async def history(call: Call) -> None:
    """GET /images/{name}/history"""
    images = call.engine.images
    image = images.get(call.name, _wanted_platform(call))
    await call.json(views.history(image, images.layer_sizes(image)))


async def tag(call: Call) -> None:
    """POST /images/{name}/tag"""
    await call.engine.images.tag(call.name, call.query.text("repo"), call.query.text("tag"))
    await call.done(201)


async def remove(call: Call) -> None:
    """DELETE /images/{name}; `platforms` since 1.50, each as JSON."""
    query = call.query
    chosen = _platforms(call, "platforms") if call.version >= (1, 50) else []
    deleted = await call.engine.images.delete(call.name, force=query.flag("force"), noprune=query.flag("noprune"), platforms=chosen)
    await call.json(deleted)


async def prune(call: Call) -> None:
    """POST /images/prune"""
    from engine.api.views import df

    await call.json(df.pruned_images(await call.engine.pruner.images(call.query.filters())))
