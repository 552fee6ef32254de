"""The flags of `knarr build`: docker's classic ones and buildx's, and what they ask for as a `Plan`.

Owns the words of errors (buildx's, with its `ERROR: ` in front) and the JSON of `engine/spec/build.py`'s Options, as a dict of what was
given. What is read from files and the environment (secrets, ssh, the Dockerfile) is in `cli/buildsecrets.py` and `cli/build.py`.
"""

import posix

from cli.client import Failure, getenv
from cli.flags import Command

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

BUILD = Command("build", "[OPTIONS] PATH | URL | -", {
    "add-host": "strings", "allow": "list", "annotation": "list", "attest": "list", "build-arg": "list", "build-context": "list",
    "builder": "string", "cache-from": "list", "cache-to": "list", "call": "string", "cgroup-parent": "string", "check": "bool",
    "compress": "bool", "cpu-period": "int64", "cpu-quota": "int64", "cpu-shares": "int64", "cpus": "decimal", "cpuset-cpus": "string",
    "cpuset-mems": "string", "debug": "bool", "file": "string", "force-rm": "bool", "iidfile": "string", "isolation": "string",
    "label": "list", "load": "bool", "memory": "bytes", "memory-swap": "swap", "metadata-file": "string", "network": "string",
    "no-cache": "bool", "no-cache-filter": "list", "output": "list", "platform": "list", "policy": "list", "progress": "string",
    "provenance": "string", "pull": "bool", "push": "bool", "quiet": "bool", "resource": "list", "rm": "bool", "sbom": "string",
    "secret": "list", "security-opt": "strings", "shm-size": "bytes", "squash": "bool", "ssh": "list", "tag": "list", "target": "string",
    "ulimit": "ulimit",
}, {"c": "cpu-shares", "D": "debug", "f": "file", "m": "memory", "o": "output", "q": "quiet", "t": "tag"}, 1, 1)

PROGRESS = ("auto", "none", "plain", "quiet", "rawjson", "tty")
ENTITLEMENTS = ("network.host", "security.insecure", "device")
STREAMED = ("local", "tar", "oci", "docker")
"""Types of outputs whose bytes come to the client."""
CALLS = {"build": "build", "check": "check", "lint": "check", "outline": "outline", "targets": "targets"}
_ANNOTATED = ("index", "index-descriptor", "manifest", "manifest-descriptor")
_PLAIN = {"target": "target", "cgroup-parent": "cgroupParent", "memory": "memory", "memory-swap": "memorySwap",
    "cpu-shares": "cpuShares", "cpu-period": "cpuPeriod", "cpu-quota": "cpuQuota", "cpuset-cpus": "cpusetCpus",
    "cpuset-mems": "cpusetMems", "shm-size": "shmSize", "no-cache": "noCache", "pull": "pull", "squash": "squash"}
_RESOURCES = ("memory", "memory-swap", "cpu-shares", "cpu-period", "cpu-quota", "cpuset-cpus", "cpuset-mems")
CPU_PERIOD = 100000  # µs; what `--cpus` is a share of


class Sink:
    """Where the bytes of one output go: `path` a folder (`unpack`) or a file, "-" for stdout. `delete`: what else is there goes;
    `optional`: it may not come."""

    __slots__ = ("delete", "kind", "optional", "path", "unpack")

    def __init__(self, kind: str, path: str, unpack: bool, delete: bool = False):
        self.kind = kind
        self.path = path
        self.unpack = unpack
        self.delete = delete
        self.optional = False


class Plan:
    """What a command line asks for. `options`: JSON of Options; `sinks`: by the index of their output; `named`: folders of named
    contexts; `excluded`: instead of their .dockerignore; `secrets` and `ssh` as written, by identifier; `file` is `--file`, "" for the
    default; `json`: a call's answer as JSON."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.sinks: dict[int, Sink] = {}
        self.named: dict[str, str] = {}
        self.excluded: dict[str, bytes] = {}
        self.secrets: dict[str, tuple[str, str]] = {}
        self.ssh: dict[str, list[str]] = {}
        self.file = ""
        self.iidfile = ""
        self.metadata = ""
        self.progress = "auto"
        self.quiet = False
        self.debug = False
        self.json = False
        self.ignore_status = False


def refuse(text: str) -> Failure:
    return Failure("ERROR: " + text)


def csv(text: str) -> "list[str]":
    """The fields of a flag's value, which is one line of CSV. Raises Failure."""
    if '"' not in text:
        return text.split(",")
    from cli.values import csv_fields

    try:
        return csv_fields(text)
    except ValueError as error:
        raise refuse(str(error)) from None


def pairs(text: str) -> "dict[str, str]":
    """`key=value,…`; keys in lower case. Raises Failure."""
    found = {}
    for field in csv(text):
        key, equals, value = field.partition("=")
        if not equals:
            raise refuse(f"invalid value {field}")
        found[key.strip().lower()] = value
    return found


def variables(values: "list[str]", environment: bool) -> "dict[str, str | None]":
    """`NAME=VALUE`; NAME alone is the environment's with `environment`, None when it has none, else empty."""
    found: dict[str, str | None] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not name:
            raise refuse(f'invalid key-value pair "{text}": empty key')
        if equals or not environment:
            found[name] = value
        else:
            found[name] = getenv(name) if name.encode() in posix.environ else None
    return found


def plan(given: "dict[str, Any]") -> Plan:
    """What the flags ask for; nothing is read but the environment. Raises Failure."""
    made = Plan()
    options = made.options
    _refused(given)
    for flag, name in _PLAIN.items():
        if given.get(flag):
            options[name] = given[flag]
    for text in given.get("resource", ()):
        _resource(options, text)
    _cpus(given, options)
    made.file = given.get("file", "")
    made.iidfile, made.metadata = given.get("iidfile", ""), given.get("metadata-file", "")
    made.debug = given.get("debug", False)
    _progress(given, made)
    _call(given, made)
    if given.get("tag"):
        options["tags"] = [_tag(text) for text in given["tag"]]
    if "build-arg" in given:
        options["buildArgs"] = variables(given["build-arg"], True)
    if getenv("SOURCE_DATE_EPOCH"):
        options.setdefault("buildArgs", {}).setdefault("SOURCE_DATE_EPOCH", getenv("SOURCE_DATE_EPOCH"))
    if "label" in given:
        options["labels"] = variables(given["label"], False)
    if found := platforms(given.get("platform") or [getenv("DOCKER_DEFAULT_PLATFORM")]):
        options["platforms"] = found
    _contexts(given, made)
    _network(given, options)
    if given.get("add-host"):
        options["hosts"] = [_host(text) for text in given["add-host"]]
    if given.get("ulimit"):
        options["ulimits"] = [f"{one['Name']}={one['Soft']}:{one['Hard']}" for one in given["ulimit"]]
    if given.get("security-opt"):
        options["securityOpt"] = given["security-opt"]
    if given.get("no-cache-filter"):
        if given.get("no-cache"):
            raise refuse("--no-cache and --no-cache-filter cannot currently be used together")
        options["noCacheFilter"] = [name for text in given["no-cache-filter"] for name in csv(text)]
    for flag, name in (("cache-from", "cacheFrom"), ("cache-to", "cacheTo")):
        if given.get(flag):
            options[name] = [one for text in given[flag] for one in cache(text)]
    if given.get("annotation"):
        options["annotations"] = [_annotation(text) for text in given["annotation"]]
    if attested := attestations(given):
        options["attest"] = attested
    _outputs(given, made)
    for text in given.get("secret", ()):
        from cli.buildsecrets import source_of

        identity, source = source_of(text)
        made.secrets[identity] = source
    for text in given.get("ssh", ()):
        identity, _, paths = text.partition("=")
        made.ssh[identity] = paths.split(",") if paths else []
    if made.ssh:
        options["ssh"] = list(made.ssh)
    return made


def _refused(given: "dict[str, Any]") -> None:
    if given.get("policy"):
        raise Failure("not implemented: --policy")
    if given.get("isolation", "") not in ("", "default"):
        raise refuse(f'invalid isolation "{given["isolation"]}": on Linux it can only be "default"')
    builder = given.get("builder") or getenv("BUILDX_BUILDER")
    if builder not in ("", "default"):
        raise refuse(f'no builder "{builder}" found')


def _resource(options: "dict[str, Any]", text: str) -> None:
    from cli.values import convert

    key, equals, value = text.partition("=")
    if not equals or key not in _RESOURCES:
        raise refuse(f'invalid resource "{text}": expected KEY=VALUE with one of {", ".join(_RESOURCES)}')
    kind = BUILD.flags[key]
    try:
        options[_PLAIN[key]] = value if kind == "string" else convert(kind, value)
    except ValueError as error:
        raise refuse(f'invalid resource "{text}": {error}') from None


def _cpus(given: "dict[str, Any]", options: "dict[str, Any]") -> None:
    if not given.get("cpus"):
        return
    if given.get("cpu-quota") or given.get("cpu-period"):
        raise refuse("conflicting options: --cpus and --cpu-period or --cpu-quota cannot both be set")
    options["cpuPeriod"], options["cpuQuota"] = CPU_PERIOD, given["cpus"] * CPU_PERIOD // 10**9


def _progress(given: "dict[str, Any]", made: Plan) -> None:
    made.quiet = given.get("quiet", False) or given.get("progress") == "quiet"
    mode = given.get("progress") or getenv("BUILDKIT_PROGRESS") or "auto"
    if mode not in PROGRESS:
        raise refuse(f"invalid progress mode {mode}")
    if made.quiet and given.get("progress", "auto") not in ("auto", "quiet"):
        raise refuse(f"progress={mode} and quiet cannot be used together")
    made.progress = "quiet" if made.quiet or mode in ("quiet", "none") else mode


def _call(given: "dict[str, Any]", made: Plan) -> None:
    """`--call METHOD[,format=json][,ignorestatus=true]` and `--check`."""
    text = given.get("call", "build") or "build"
    if given.get("check"):
        if text not in ("build", "check"):
            raise refuse(f"--check and --call={text} cannot be used together")
        text = "check"
    method = ""
    for field in csv(text):
        key, equals, value = field.partition("=")
        if not equals:
            if method:
                raise refuse(f"invalid value {field}")
            method = field
        elif key == "format" and value in ("json", "text"):
            made.json = value == "json"
        elif key == "ignorestatus":
            from cli.values import boolean

            try:
                made.ignore_status = boolean(value)
            except ValueError as error:
                raise refuse(f'invalid value "{value}" for ignorestatus: {error}') from None
        else:
            raise refuse(f"invalid value {field}")
    if method not in CALLS:
        raise refuse(f'invalid call "{method}": expected one of build, check, outline, targets')
    if CALLS[method] != "build":
        made.options["call"] = CALLS[method]


def _tag(text: str) -> str:
    from cli.references import parse

    try:
        reference = parse(text)
    except ValueError as error:
        words = "repository name must be lowercase" if "lowercase" in str(error) else str(error)
        raise refuse(f'invalid tag "{text}": {words}') from None
    if reference.digest:
        raise refuse(f'invalid tag "{text}": a tag has no digest')
    return text


def platforms(values: "list[str]") -> "list[str]":
    """`os/arch[/variant]` of each, spelled as Go does; `local` is this machine's."""
    found = []
    for text in values:
        for part in csv(text):
            if not part:
                continue
            from cli.platforms import parse

            try:
                one = parse("linux" if part == "local" else part)
            except ValueError as error:
                raise refuse(str(error)) from None
            shown = "/".join(one[key] for key in ("os", "architecture", "variant") if key in one)
            if shown not in found:
                found.append(shown)
    return found


def is_remote(text: str) -> bool:
    """Whether a context is an address: HTTP, or of a Git repository."""
    if text.startswith(("http://", "https://", "git://", "ssh://", "github.com/")):
        return True
    head, colon, _ = text.partition(":")
    user, at, host = head.partition("@")
    return bool(colon and at and user and host and "/" not in head)


def is_folder(path: str) -> bool:
    try:
        return (posix.stat(path).st_mode & 0o170000) == 0o040000
    except OSError:
        return False


def _contexts(given: "dict[str, Any]", made: Plan) -> None:
    contexts = {}
    for text in given.get("build-context", ()):
        name, equals, value = text.partition("=")
        if not equals:
            raise refuse(f"invalid context value: {text}, expected key=value")
        name = _context_name(name)
        if value.startswith("oci-layout://"):
            from cli.buildlayout import prepare

            contexts[name] = prepare(made, value, len(contexts))
            continue
        if is_remote(value) or value.startswith(("docker-image://", "target:")):
            contexts[name] = value
            continue
        try:
            mode = posix.stat(value).st_mode
        except OSError as error:
            raise refuse(f"failed to get build context {name}: stat {value}: {(error.strerror or '').lower()}") from None
        if (mode & 0o170000) != 0o040000:
            raise refuse(f"failed to get build context {name}: not a directory: {value}")
        contexts[name], made.named[name] = "sent:", value
    if contexts:
        made.options["contexts"] = contexts


def _context_name(name: str) -> str:
    from cli.references import parse

    try:
        reference = parse(name)
    except ValueError:
        raise refuse(f"invalid context name {name}") from None
    tag = f":{reference.tag}" if reference.tag not in ("", "latest") else ""
    return reference.familiar + tag + (f"@{reference.digest}" if reference.digest else "")


def _network(given: "dict[str, Any]", options: "dict[str, Any]") -> None:
    mode = given.get("network", "") or "default"
    allowed = list(given.get("allow", ()))
    for entitlement in allowed:
        if entitlement.partition("=")[0] not in ENTITLEMENTS:
            raise refuse(f"unknown entitlement {entitlement}")
    if mode not in ("default", "bridge"):
        options["network"] = mode
    if mode == "host" and "network.host" not in allowed:
        allowed.append("network.host")
    if allowed:
        options["allow"] = allowed


def _host(text: str) -> str:
    from cli.values import extra_host

    try:
        return extra_host(text)
    except ValueError:
        raise refuse(f"invalid host {text}") from None


def cache(text: str) -> "list[dict[str, Any]]":
    """`--cache-from` and `--cache-to`: `type=…,…`, or references alone. Folders become absolute paths of the host."""
    fields = csv(text)
    if all("=" not in field for field in fields):
        return [{"type": "registry", "attributes": {"ref": field}} for field in fields if field]
    attributes = pairs(text)
    kind = attributes.pop("type", "")
    if not kind:
        raise refuse(f'type required form> "{text}"')
    for key in ("src", "dest") if kind == "local" else ():
        if attributes.get(key):
            attributes[key] = absolute(attributes[key])
    return [{"type": kind, "attributes": attributes}]


def absolute(path: str) -> str:
    return path if path.startswith("/") else posix.getcwd() + "/" + path


def _annotation(text: str) -> str:
    key, equals, _ = text.partition("=")
    kinds, colon, rest = key.partition(":")
    if not equals or not key or (colon and not rest):
        raise refuse(f'invalid annotation "{text}", expected key=value')
    if colon:
        for kind in kinds.split(","):
            if kind.partition("[")[0] not in _ANNOTATED:
                raise refuse(f'unknown annotation type "{kind}"')
    return text


def attestations(given: "dict[str, Any]") -> "dict[str, dict[str, str]]":
    """`--attest type=…,…`, and `--sbom` and `--provenance`, which stand for them. Those disabled are left out."""
    from cli.flags import FALSE, TRUE

    wanted = [pairs(text) for text in given.get("attest", ())]
    for kind in ("sbom", "provenance"):
        text = given.get(kind, "")
        if text in TRUE or text in FALSE:
            wanted.append({"type": kind, "disabled": "true" if text in FALSE else "false"})
        elif text:
            wanted.append({"type": kind} | pairs(text))
    found: dict[str, dict[str, str]] = {}
    for attributes in wanted:
        kind = attributes.pop("type", "")
        if not kind:
            raise refuse("attestation type not specified")
        if kind in found:
            raise refuse(f"duplicate attestation field {kind}")
        if attributes.get("disabled", "true") not in TRUE + FALSE:
            raise refuse(f'invalid value disabled={attributes["disabled"]} of the attestation {kind}: expected true or false')
        found[kind] = attributes
    return {kind: {key: value for key, value in attributes.items() if key != "disabled"} for kind, attributes in found.items()
        if attributes.get("disabled", "false") not in TRUE}


def _outputs(given: "dict[str, Any]", made: Plan) -> None:
    outputs: list[dict[str, Any]] = []
    for text in given.get("output", ()):
        kind, attributes, sink = output_of(text)
        if sink is not None:
            made.sinks[len(outputs)] = sink
        outputs.append({"type": kind, "attributes": attributes})
    stdout = [sink for sink in made.sinks.values() if sink.path == "-"]
    if len(stdout) > 1:
        raise refuse("multiple outputs cannot all be written to stdout")
    images = [one for one in outputs if one["type"] == "image"]
    if given.get("push"):
        if not images:
            images.append({"type": "image", "attributes": {}})
            outputs += images
        for one in images:
            one["attributes"]["push"] = "true"
    if given.get("load") and not images and outputs:
        outputs.append({"type": "image", "attributes": {}})
    for one in images:
        attributes = one["attributes"]
        if attributes.get("push") == "true" and not attributes.get("name") and not made.options.get("tags"):
            raise refuse("tag is needed when pushing to registry")
    if outputs:
        made.options["outputs"] = outputs


def output_of(text: str) -> "tuple[str, dict[str, str], Sink | None]":
    """`--output`: type, attributes for the daemon, and where its bytes go here. `DEST` alone is a folder, `-` alone a tar on stdout."""
    if text == "-":
        text = "type=tar,dest=-"
    if csv(text) == [text] and not text.startswith("type="):
        return "local", {}, _folder("local", text, {})
    attributes = pairs(text)
    kind = attributes.pop("type", "").lower()
    if not kind:
        raise refuse("type is required for output")
    if kind == "registry":
        return "image", attributes | {"push": "true"}, None
    if kind not in STREAMED:
        return kind, attributes, None
    path = attributes.pop("dest", "")
    if kind == "docker" and not path:
        return "image", attributes, None  # into the store, which is where the daemon's images are
    if kind == "local" or attributes.get("tar") == "false":
        sink = _folder(kind, path, attributes)
        attributes.pop("mode", None)
        return kind, attributes, sink
    if path in ("", "-"):
        from cli.terminal import is_terminal

        if is_terminal(1):
            raise refuse(f"dest file is required for {kind} exporter. refusing to write to console")
        return kind, attributes, Sink(kind, "-", False)
    if is_folder(path):
        raise refuse(f"destination file {path} is a directory")
    return kind, attributes, Sink(kind, path, False)


def _folder(kind: str, path: str, attributes: "dict[str, str]") -> Sink:
    if not path:
        raise refuse(f"dest is required for {kind} exporter")
    if path == "-":
        raise refuse(f"dest cannot be stdout for {kind} exporter")
    mode = attributes.get("mode", "copy")
    if mode not in ("copy", "delete"):
        raise refuse(f'invalid mode "{mode}" for {kind} exporter: expected copy or delete')
    return Sink(kind, path, True, mode == "delete")
