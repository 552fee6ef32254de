"""Build caches in folders of this machine: `--cache-from type=local` is sent to the daemon, `--cache-to type=local` comes from it.

A folder is an OCI image layout, as BuildKit's: several caches are told apart by tags in its index. Only what belongs to the one that is
asked for is sent.
"""

from cli import buildlayout
from cli.buildflags import Plan, Sink, refuse
from cli.buildoutput import Unpacker
from cli.codec import dumps
from cli.configfile import write_file
from cli.streams import write_all

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable

CACHE = "cache"
"""The kind of a sink that is a cache's folder."""


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
            plan.named[name], plan.excluded[name] = source, buildlayout.others(source, one["attributes"]["digest"])
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
        index = buildlayout.document(f"{source}/index.json")
        trouble = "" if index is not None else f"could not read {source}/index.json: no such file or directory"
        attributes["digest"] = next((one["digest"] for one in buildlayout.manifests(index) if buildlayout.tag_of(one) == tag), "")
    except (OSError, ValueError) as error:
        trouble = str(error)
    if not trouble and not attributes["digest"]:
        trouble = f"its index has no tag {tag}"
    if trouble:
        write_all(2, f"WARNING: local cache import at {source} not found due to err: {trouble}\n".encode())
    return not trouble


class Folder(Unpacker):
    """A cache on its way into a folder: what its index names under other tags stays."""

    def run(self, source: "Callable[[], bytes]") -> None:
        """Unpack the stream; the index has the other tags afterwards too. Raises Failure."""
        path = f"{self.path}/index.json"
        try:
            before = buildlayout.manifests(buildlayout.document(path))
        except (OSError, ValueError):
            before = []
        super().run(source)
        try:
            index = buildlayout.document(path)
            tags = {buildlayout.tag_of(one) for one in buildlayout.manifests(index)}
            kept = [one for one in before if buildlayout.tag_of(one) not in tags]
            if kept and isinstance(index, dict):
                write_file(path, dumps(index | {"manifests": [*buildlayout.manifests(index), *kept]}).encode(), 0o644)
        except (OSError, ValueError) as error:
            raise refuse(f"failed to write {path}: {error}") from None
