"""`/images/...`: parse, call `engine.images`, render. Engine API reference 1.51, "Image"; `fromhost` is an extension."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from engine.api.bodies import Body
from engine.api.call import Call
from engine.api.views import images as views
from engine.errors import InvalidParameter, NotFound, NotImplementedYet
from engine.service import imagefilter
from engine.spec import reference
from engine.spec.digest import check_digest
from engine.spec.hostimage import HostImage
from engine.store.images import ImageRecord

if TYPE_CHECKING:
    from engine.registry.auth import Credentials


class _Platform(msgspec.Struct):
    """The JSON that clients since 1.48 put into `platform`."""

    os: str = "linux"
    architecture: str = ""
    variant: str = ""


_platform = Body(_Platform)
_HOST_IMAGE = Body(HostImage)


def _wanted_platform(call: Call) -> str:
    """`platform` as `os/arch[/variant]`, however it was written; "" when it is not given. Raises InvalidParameter."""
    given = call.query.texts("platform")
    if len(given) > 1:
        raise NotImplementedYet("several platforms in one request")
    text = given[0] if given else ""
    if not text.startswith("{"):
        return text
    parsed = _platform.parse(text.encode())
    return "/".join(filter(None, (parsed.os, parsed.architecture, parsed.variant)))


def _same_platform(call: Call, image: ImageRecord) -> None:
    """Raise NotFound when a platform was asked for that the image is not for: there is one for each name."""
    wanted = _wanted_platform(call)
    have = "/".join(filter(None, (image.os, image.architecture, image.variant)))
    if wanted and not f"{have}/".startswith(f"{wanted}/"):
        raise NotFound(
            f"image with reference {call.name} was found but does not match the specified platform: wanted {wanted}, actual: {have}"
        )


async def listing(call: Call) -> None:
    """GET /images/json"""
    query, images = call.query, call.engine.images
    if query.flag("manifests") and call.version >= (1, 47):
        raise NotImplementedYet("manifests=1 of GET /images/json")
    filters = query.filters()
    filters.check(imagefilter.KEYS)
    found = images.list(filters, all=query.flag("all"))
    shared = _shared(call, list(images.list())) if query.flag("shared-size") else {}
    using = call.engine.containers.using
    await call.json(
        [views.summary(image, call.version, shared=shared.get(image.id, -1), containers=len(using(image.id))) for image in found]
    )


def _shared(call: Call, images: Sequence[ImageRecord]) -> dict[str, int]:
    """Image -> bytes of its layers that another image has too."""
    count = Counter(chain for image in images for chain in image.chain_ids)
    sizes = call.engine.images.layer_sizes
    return {
        image.id: sum(size for chain, size in zip(image.chain_ids, sizes(image), strict=True) if count[chain] > 1) for image in images
    }


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
    lines = call.engine.images.import_(
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
    async with call.exchange.while_connected():
        await call.lines(call.engine.pulls.pull(name, options))


async def push(call: Call) -> None:
    """POST /images/{name}/push; without `tag` every tag of the repository. `to` (another Knarr daemon's address) is an extension."""
    from engine.service.pull import Options

    name, all_tags = _pulled(call.name, call.query.text("tag"))
    options = Options(platform=_wanted_platform(call), credentials=_credentials(call), all_tags=all_tags, peer=call.query.text("to"))
    await call.exchange.body()  # old clients send credentials here too
    async with call.exchange.while_connected():
        await call.lines(call.engine.pushes.push(name, options))


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
    """POST /images/load"""
    lines = call.engine.images.load(call.exchange.chunks(), quiet=call.query.flag("quiet"), platform=_wanted_platform(call))
    await call.lines(lines)


async def from_host(call: Call) -> None:
    """POST /images/fromhost, an extension: an image of programs of this host and the libraries that they need."""
    wanted = await call.body(_HOST_IMAGE)
    if wanted is None:
        raise InvalidParameter("making an image from this host: no program was given")
    image = await call.engine.images.from_host(wanted)
    await call.json({"Id": image.id, "RepoTags": image.repo_tags}, 201)


async def inspect(call: Call) -> None:
    """GET /images/{name}/json"""
    if call.query.flag("manifests"):
        raise NotImplementedYet("manifests=1 of GET /images/{name}/json")
    images = call.engine.images
    image = images.get(call.name)
    _same_platform(call, image)
    await call.json(views.inspect(image, call.version, layers=images.layer_folders(image)))


async def history(call: Call) -> None:
    """GET /images/{name}/history"""
    images = call.engine.images
    image = images.get(call.name)
    _same_platform(call, image)
    await call.json(views.history(image, images.layer_sizes(image)))


async def tag(call: Call) -> None:
    """POST /images/{name}/tag"""
    await call.engine.images.tag(call.name, call.query.text("repo"), call.query.text("tag"))
    await call.done(201)


async def remove(call: Call) -> None:
    """DELETE /images/{name}"""
    query = call.query
    if query.texts("platforms"):
        raise NotImplementedYet("platforms of DELETE /images/{name}")
    await call.json(await call.engine.images.delete(call.name, force=query.flag("force"), noprune=query.flag("noprune")))
