"""`knarr manifest inspect create annotate push rm`: manifests in a registry, and lists of them that are put together here first.

A list in the making is a folder below `manifests` beside `config.json`, one JSON file for each of its manifests, as the docker CLI keeps
them. Registries are asked by the daemon (`GET` and `PUT /distribution/NAME/manifest`, extensions of Knarr's; the platform of an image comes
from Docker's own `GET /distribution/NAME/json`), so that this client needs neither TLS nor HTTP beyond its socket.
Media types: OCI image specification, "Media Types", and Docker's image manifest version 2, schema 2.
"""

import posix
from binascii import b2a_base64

from cli.client import Client, DaemonError, Failure, query, quote
from cli.codec import indent, loads, ordered_dumps
from cli.configfile import folder, make_folder, read_file, write_file
from cli.flags import Command, parse
from cli.pull import reference_of
from cli.references import Reference
from cli.streams import output

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

_INSECURE = {"insecure": "bool"}
INSPECT = Command("manifest inspect", "[OPTIONS] [MANIFEST_LIST] MANIFEST", _INSECURE | {"verbose": "bool"}, {"v": "verbose"}, 1, 2)
CREATE = Command("manifest create", "MANIFEST_LIST MANIFEST [MANIFEST...]", _INSECURE | {"amend": "bool"}, {"a": "amend"}, 2)
ANNOTATE = Command("manifest annotate", "[OPTIONS] MANIFEST_LIST MANIFEST", {
    "arch": "string", "os": "string", "os-features": "strings", "os-version": "string", "variant": "string",
}, {}, 2, 2)
PUSH = Command("manifest push", "[OPTIONS] MANIFEST_LIST", _INSECURE | {"purge": "bool"}, {"p": "purge"}, 1, 1)
RM = Command("manifest rm", "MANIFEST_LIST [MANIFEST_LIST...]", {}, {}, 1)

DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
LISTS = (DOCKER_LIST, "application/vnd.oci.image.index.v1+json")
# what Docker's client lets into a list: GOOS/GOARCH pairs
_PAIRS = {
    "darwin": ("386", "amd64", "arm", "arm64"), "dragonfly": ("amd64",), "freebsd": ("386", "amd64", "arm"),
    "linux": ("386", "amd64", "arm", "arm64", "ppc64le", "mips64", "mips64le", "riscv64", "s390x"),
    "netbsd": ("386", "amd64", "arm"), "openbsd": ("386", "amd64", "arm"), "plan9": ("386", "amd64"), "solaris": ("amd64",),
    "windows": ("386", "amd64", "arm"),
}  # fmt: skip


def _tagged(text: str) -> Reference:
    reference = reference_of(text)
    if not reference.tag and not reference.digest:
        reference.tag = "latest"
    return reference


class Lists:
    """The lists kept in `manifests` beside `config.json`."""

    def __init__(self, client: Client):
        self.folder = folder(client.folder) + "/manifests"

    def _folder(self, target: Reference) -> str:
        return f"{self.folder}/{_file_name(target)}"

    def get(self, target: Reference) -> "list[dict[str, Any]]":
        """The manifests of a list, in the order of their files' names; empty when there is no such list."""
        try:
            names = sorted(posix.listdir(self._folder(target)))
        except OSError:
            return []
        entries = [self._read(f"{self._folder(target)}/{name}") for name in names]
        return [entry for entry in entries if entry]

    def one(self, target: Reference, source: Reference) -> "dict[str, Any] | None":
        return self._read(f"{self._folder(target)}/{_file_name(source)}")

    def _read(self, path: str) -> "dict[str, Any] | None":
        data = read_file(path)
        if data is None:
            return None
        try:
            entry = loads(data)
            if not isinstance(entry["Descriptor"]["digest"], str) or not isinstance(entry["Ref"], str):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise Failure(f"read {path}: not a manifest of a list; remove the file or the whole list") from None
        return dict(entry)

    def put(self, target: Reference, source: Reference, entry: "dict[str, Any]") -> None:
        make_folder(self._folder(target))
        write_file(f"{self._folder(target)}/{_file_name(source)}", ordered_dumps(entry).encode(), 0o600)

    def remove(self, target: Reference) -> bool:
        """False when there was none."""
        path = self._folder(target)
        try:
            names = posix.listdir(path)
        except OSError:
            return False
        for name in names:
            posix.unlink(f"{path}/{name}")
        posix.rmdir(path)
        return True


def _file_name(reference: Reference) -> str:
    """A reference has no `..` of its own and no other separator, so no name leaves the folder."""
    return str(reference).replace(":", "-").replace("/", "_")


class Registry:
    """Manifests as the daemon gets and puts them."""

    def __init__(self, client: Client, given: "dict[str, Any]"):
        self.client = client
        self.insecure = given.get("insecure") or None

    def _path(self, reference: Reference, what: str, **fields: "str | None") -> str:
        from cli.images import _NAME

        return query(f"/distribution/{quote(str(reference), _NAME)}/{what}", insecure=self.insecure, **fields)

    def _head(self, reference: Reference) -> str:
        from cli.credentials import for_reference

        return for_reference(self.client, reference)

    def get(self, reference: Reference) -> "tuple[bytes, str, str]":
        """The manifest's bytes, media type and digest. Raises Failure."""
        try:
            response = self.client.call("GET", self._path(reference, "manifest"), None, self._head(reference))
        except DaemonError as error:
            if error.status != 404 or error.message == "page not found":
                raise
            raise Failure(f"no such manifest: {reference}") from None
        raw = response.read()
        return raw, response.headers.get("content-type", "").partition(";")[0], response.headers.get("docker-content-digest", "")

    def platform(self, reference: Reference) -> "dict[str, Any]":
        """The first platform the registry has the image for."""
        found = self.client.get(self._path(reference, "json"), self._head(reference))
        return dict((found.get("Platforms") or [{}])[0])

    def put(self, reference: Reference, raw: bytes, kind: str, source: str = "") -> str:
        """Store a manifest, its blobs mounted from `source`'s repository first; the digest."""
        head = f"Content-Type: {kind}\r\n" + self._head(reference)
        response = self.client.call("PUT", self._path(reference, "manifest", **{"from": source}), raw, head)
        response.read()
        return response.headers.get("docker-content-digest", "")

    def entry(self, reference: Reference, platform: "dict[str, Any] | None" = None) -> "dict[str, Any]":
        """A manifest as the verbose inspect and the files of a list hold it. Raises Failure for one that is a list."""
        raw, kind, digest = self.get(reference)
        if kind in LISTS:
            raise Failure(f"{reference} is a manifest list")
        if platform is None:
            platform = self.platform(reference)
        descriptor = {"mediaType": kind, "digest": digest, "size": len(raw), "platform": _platform(platform)}
        form = "SchemaV2Manifest" if kind == DOCKER_MANIFEST else "OCIManifest"
        encoded = b2a_base64(raw, newline=False).decode()
        return {"Ref": str(reference), "Descriptor": descriptor, "Raw": encoded, form: _json(reference, raw)}


def _json(reference: Reference, raw: bytes) -> "Any":
    try:
        value = loads(raw)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Failure(f"{reference}: the registry's manifest is no JSON object")
    return value


def _platform(platform: "dict[str, Any]") -> "dict[str, Any]":
    """The platform's members in the order in which Docker writes them: the digest of a list depends on it."""
    return {key: platform[key] for key in ("architecture", "os", "os.version", "os.features", "variant") if platform.get(key)}


def create(client: Client, name: str, argv: "list[str]") -> int:
    given, (list_name, *sources) = parse(CREATE, argv)
    try:
        target = _tagged(list_name)
    except Failure as failure:
        raise Failure(f"error parsing name for manifest list {list_name}: {failure.text}") from None
    lists, registry = Lists(client), Registry(client, given)
    if lists.get(target) and not given.get("amend"):
        raise Failure("refusing to amend an existing manifest list with no --amend flag")
    entries = [(source, registry.entry(source)) for source in (_tagged(text) for text in sources)]
    for source, entry in entries:  # all or none: a source that is missing leaves no half list
        lists.put(target, source, entry)
    output(f"Created manifest list {target}\n")
    return 0


def annotate(client: Client, name: str, argv: "list[str]") -> int:
    given, (list_name, image) = parse(ANNOTATE, argv)
    target, source = _tagged(list_name), _tagged(image)
    lists = Lists(client)
    entry = lists.one(target, source)
    if entry is None:
        raise Failure(f"manifest for image {image} does not exist in {list_name}")
    platform = dict(entry["Descriptor"].get("platform") or {})
    for flag, member in (("os", "os"), ("arch", "architecture"), ("variant", "variant"), ("os-version", "os.version"),
                         ("os-features", "os.features")):
        if given.get(flag):
            platform[member] = given[flag]
    if platform.get("architecture") not in _PAIRS.get(platform.get("os", ""), ()):
        raise Failure(f"manifest entry for image has unsupported os/arch combination: {given.get('os', '')}/{given.get('arch', '')}")
    entry["Descriptor"]["platform"] = _platform(platform)
    lists.put(target, source, entry)
    return 0


def inspect(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(INSPECT, argv)
    lists, verbose = Lists(client), given.get("verbose", False)
    if len(names) == 2:
        entry = lists.one(_tagged(names[0]), _tagged(names[1]))
        if entry is None:
            raise Failure(f"No such manifest: {_tagged(names[1])}")
        output(indent(ordered_dumps(entry if verbose else _manifest(entry)), "\t") + "\n")
        return 0
    reference = _tagged(names[0])
    if local := lists.get(reference):
        output((indent(ordered_dumps(local), "\t") if verbose else list_text(local)) + "\n")
        return 0
    return _inspect_remote(Registry(client, given), reference, verbose)


def _inspect_remote(registry: Registry, reference: Reference, verbose: bool) -> int:
    raw, kind, _ = registry.get(reference)
    value = _json(reference, raw)
    if kind not in LISTS:
        output(indent(ordered_dumps(registry.entry(reference) if verbose else value), "\t") + "\n")
        return 0
    if not verbose:
        output(indent(raw.decode("utf-8", "replace"), "   ") + "\n")
        return 0
    entries = []
    for descriptor in value.get("manifests") or ():
        child = reference_of(f"{reference.name}{':' + reference.tag if reference.tag else ''}@{descriptor['digest']}")
        entries.append(registry.entry(child, descriptor.get("platform") or {}))
    output(indent(ordered_dumps(entries), "\t") + "\n")
    return 0


def _manifest(entry: "dict[str, Any]") -> "Any":
    return entry.get("SchemaV2Manifest") or entry.get("OCIManifest")


def list_text(entries: "list[dict[str, Any]]") -> str:
    """The manifest list, byte for byte as Docker's client would push it."""
    manifests = []
    for entry in entries:
        kept, platform = entry["Descriptor"], _platform(entry["Descriptor"].get("platform") or {})
        manifests.append({key: kept[key] for key in ("mediaType", "size", "digest")} | {"platform": platform})
    return indent(ordered_dumps({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": manifests}), "   ")


def push(client: Client, name: str, argv: "list[str]") -> int:
    from binascii import a2b_base64

    given, (list_name,) = parse(PUSH, argv)
    target = _tagged(list_name)
    lists, registry = Lists(client), Registry(client, given)
    entries = lists.get(target)
    if not entries:
        raise Failure(f"No such manifest: {target}")
    for entry in entries:
        source = reference_of(entry["Ref"])
        if source.domain != target.domain:
            raise Failure(f"cannot use source images from a different registry than the target image: {source.domain} != {target.domain}")
        platform = entry["Descriptor"].get("platform") or {}
        if not platform.get("os") or not platform.get("architecture"):
            raise Failure(f"manifest {entry['Ref']} must have an OS and Architecture to be pushed to a registry")
    for entry in entries:
        source, digest = reference_of(entry["Ref"]), entry["Descriptor"]["digest"]
        child = Reference(target.domain, target.path, "", digest)
        stored = registry.put(child, a2b_base64(entry["Raw"]), entry["Descriptor"]["mediaType"],
            source.name if source.path != target.path else "")
        output(f"Pushed ref {child} with digest: {stored}\n")
    output(registry.put(target, list_text(entries).encode(), DOCKER_LIST) + "\n")
    if given.get("purge"):
        lists.remove(target)
    return 0


def rm(client: Client, name: str, argv: "list[str]") -> int:
    _, names = parse(RM, argv)
    lists = Lists(client)
    errors = []
    for text in names:
        try:
            target = _tagged(text)
        except Failure as failure:
            errors.append(failure.text)
            continue
        if not lists.remove(target):
            errors.append(f"No such manifest: {target}")
    if errors:
        raise Failure("\n".join(errors))
    return 0
