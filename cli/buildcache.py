"""Build caches in folders of this machine: `--cache-from type=local` is sent to the daemon, `--cache-to type=local` comes from it.

A folder is an OCI image layout, as BuildKit's: several caches are told apart by tags in its index. Only what belongs to the one that is
asked for is sent.
"""

from cli.buildflags import Plan, Sink, refuse
from cli.buildoutput import Unpacker
from cli.codec import dumps, loads
from cli.configfile import read_file, write_file
from cli.streams import write_all

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CACHE = "cache"
"""The kind of a sink that is a cache's folder."""
_TAG = "org.opencontainers.image.ref.name"
_LARGEST = 4 << 20  # bytes of an index or a manifest, as the daemon reads them


def prepare(plan: Plan) -> None:
    """Folders of caches as contexts and outputs of a build. One to be read that is not there is told of and left out. Raises Failure."""
    asked = plan.options.get("cacheFrom", [])
    found = [one for one in asked if one["type"] != "local" or _readable(one["attributes"])]
    if asked:
        plan.options["cacheFrom"] = found
    for number, one in enumerate(found):
        if one["type"] == "local":
            source = one["attributes"]["src"]
            name = f"cache:{number}"
            plan.named[name], plan.excluded[name] = source, _others(source, one["attributes"]["digest"])
    if plan.options.get("call", "build") != "build":
        return
    for number, one in enumerate(plan.options.get("cacheTo", [])):
        if one["type"] == "local":
            attributes = one["attributes"]
            if not attributes.get("dest"):
                raise refuse("local cache exporter requires dest")
            sink = Sink(CACHE, attributes["dest"], True)
            sink.optional = attributes.get("ignore-error") == "true"
            plan.sinks[len(plan.options.get("outputs", [])) + number] = sink


def _readable(attributes: "dict[str, str]") -> bool:
    """Whether there is such a cache; its digest is known then."""
    source = attributes.get("src", "")
    if not source:
        raise refuse("local cache importer requires src")
    if attributes.get("digest"):
        return True
    tag = attributes.get("tag") or "latest"
    try:
        index = _read(f"{source}/index.json")
        trouble = "" if index is not None else f"could not read {source}/index.json: no such file or directory"
        attributes["digest"] = next((one["digest"] for one in _manifests(index) if _tag(one) == tag), "")
    except (OSError, ValueError) as error:
        trouble = str(error)
    if not trouble and not attributes["digest"]:
        trouble = f"its index has no tag {tag}"
    if trouble:
        write_all(2, f"WARNING: local cache import at {source} not found due to err: {trouble}\n".encode())
    return not trouble


def _read(path: str) -> "Any":
    """A JSON document, None when it is not there. Raises ValueError, OSError."""
    raw = read_file(path, _LARGEST)
    return None if raw is None else loads(raw)


def _manifests(index: "Any") -> "list[dict[str, Any]]":
    found = index.get("manifests") if isinstance(index, dict) else None
    return [one for one in found or () if isinstance(one, dict) and isinstance(one.get("digest"), str)]


def _tag(one: "dict[str, Any]") -> "str | None":
    annotations = one.get("annotations")
    return annotations.get(_TAG) if isinstance(annotations, dict) else None


def _others(source: str, digest: str) -> bytes:
    """What is not sent of the folder, as a .dockerignore: everything but the blobs that the manifest names."""
    wanted = [digest]
    try:
        manifest = _read(f"{source}/{_place(digest)}")
    except (OSError, ValueError):
        manifest = None  # the daemon finds out what is wrong with it, and says so
    if isinstance(manifest, dict):
        described = [manifest.get("config"), *(manifest.get("layers") or ()), *(manifest.get("manifests") or ())]
        wanted += [one["digest"] for one in described if isinstance(one, dict) and isinstance(one.get("digest"), str)]
    places = [_place(one) for one in dict.fromkeys(wanted) if one.replace(":", "").isalnum()]
    return "\n".join(["**", "!index.json", *(f"!{place}" for place in places), ""]).encode()


def _place(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)


class Folder(Unpacker):
    """A cache on its way into a folder: what its index names under other tags stays."""

    def run(self, source: "Callable[[], bytes]") -> None:
        """Unpack the stream; the index has the other tags afterwards too. Raises Failure."""
        path = f"{self.path}/index.json"
        try:
            before = _manifests(_read(path))
        except (OSError, ValueError):
            before = []
        super().run(source)
        try:
            index = _read(path)
            tags = {_tag(one) for one in _manifests(index)}
            kept = [one for one in before if _tag(one) not in tags]
            if kept and isinstance(index, dict):
                write_file(path, dumps(index | {"manifests": [*_manifests(index), *kept]}).encode(), 0o644)
        except (OSError, ValueError) as error:
            raise refuse(f"failed to write {path}: {error}") from None
