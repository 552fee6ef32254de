"""OCI image layouts in folders of this machine, as BuildKit's: what their index names, and which of their blobs the daemon needs.

`--build-context NAME=oci-layout://FOLDER[:TAG][@DIGEST]` sends one; caches in folders are layouts too.
"""

from cli.buildflags import Plan, refuse
from cli.codec import loads
from cli.configfile import read_file

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

SCHEME = "oci-layout://"
_CONTEXT = "oci-layout:"  # begins the name of such a context, as `builder.layouts` has it
_TAG = "org.opencontainers.image.ref.name"
_LARGEST = 4 << 20  # bytes of an index or a manifest, as the daemon reads them
_MOST = 1000  # manifests that an index leads to
_DOCUMENTS = (
    "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
)  # fmt: skip


def prepare(plan: Plan, value: str, number: int) -> str:
    """The named context `number` as a context to send; its address for the daemon. Raises Failure."""
    path, _, digest = value.removeprefix(SCHEME).partition("@")
    path, colon, tag = path.partition(":")
    try:
        index = document(f"{path}/index.json")
        if index is None:
            raise ValueError(f"could not read {path}/index.json: no such file or directory")
        digest = digest or _digest(manifests(index), tag if colon else "latest")
        if document(f"{path}/{place(digest)}") is None:
            raise ValueError(f"it has no blob {digest}")
    except OSError as error:
        raise refuse(f'oci-layout reference "{value}" could not be resolved: {(error.strerror or "").lower()}') from None
    except ValueError as error:
        raise refuse(f'oci-layout reference "{value}" could not be resolved: {error}') from None
    sent = f"{_CONTEXT}{number}"
    plan.named[sent], plan.excluded[sent] = path, others(path, digest)
    return f"{SCHEME}{number}{':' + tag if tag else ''}@{digest}"


def _digest(entries: "list[dict[str, Any]]", tag: str) -> str:
    """Of what has the tag, or of what is there alone. Raises ValueError."""
    found = [one for one in entries if tag_of(one) == tag] or [one for one in entries if str(tag_of(one) or "").endswith(f":{tag}")]
    if not found and len(entries) == 1:
        found = entries
    if not found:
        raise ValueError(f"its index has no tag {tag}")
    digest: str = found[0]["digest"]
    return digest


def document(path: str) -> "Any":
    """A JSON document, None when it is not there. Raises ValueError, OSError."""
    raw = read_file(path, _LARGEST)
    return None if raw is None else loads(raw)


def manifests(index: "Any") -> "list[dict[str, Any]]":
    """What an index names."""
    return _described(index.get("manifests") if isinstance(index, dict) else None)


def tag_of(one: "dict[str, Any]") -> "str | None":
    """What an index calls one of its manifests."""
    annotations = one.get("annotations")
    return annotations.get(_TAG) if isinstance(annotations, dict) else None


def place(digest: str) -> str:
    """Of a blob below the layout's folder. Raises ValueError for what is no digest."""
    if not digest.replace(":", "", 1).isalnum():
        raise ValueError(f"invalid digest {digest!r}")
    return "blobs/" + digest.replace(":", "/", 1)


def others(folder: str, digest: str) -> bytes:
    """What is not sent of a layout, as a .dockerignore: everything but the blobs that a manifest or an index leads to."""
    wanted, documents = {digest}, [digest]
    for one in documents:  # grows meanwhile
        try:
            found = document(f"{folder}/{place(one)}") if len(documents) <= _MOST else None
        except (OSError, ValueError):
            continue  # the daemon finds out what is wrong with it, and says so
        if isinstance(found, dict):
            for entry in _described([found.get("config"), *_list(found.get("layers")), *_list(found.get("manifests"))]):
                if entry["digest"] not in wanted and entry.get("mediaType") in _DOCUMENTS:
                    documents.append(entry["digest"])
                wanted.add(entry["digest"])
    places = [place(one) for one in sorted(wanted) if one.replace(":", "", 1).isalnum()]
    return "\n".join(["**", "!index.json", *(f"!{one}" for one in places), ""]).encode()


def _list(value: "Any") -> "list[Any]":
    return value if isinstance(value, list) else []


def _described(entries: "Any") -> "list[dict[str, Any]]":
    return [one for one in _list(entries) if isinstance(one, dict) and isinstance(one.get("digest"), str)]
