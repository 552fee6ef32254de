"""Image references as the user types and sees them: the grammar and the short forms of distribution/reference. No regular expressions:
importing `re` costs 6 ms.
"""

HUB_DOMAIN = "docker.io"
# distribution/reference: most characters of a repository's path, and of a tag
_MAX_PATH = 255
_MAX_TAG = 128
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_ALNUM = _LETTERS | frozenset("0123456789")
_TAG = _ALNUM | frozenset("_.-")
_HEX = frozenset("0123456789abcdef")
_DIGEST_SIZES = {"sha256": 64, "sha384": 96, "sha512": 128}


def split_tag(image: str) -> "tuple[str, str]":
    """Name, and tag or digest; `latest` where neither is given."""
    if "@" in image:
        name, _, digest = image.partition("@")
        return split_tag(name)[0] if ":" in name.rpartition("/")[2] else name, digest
    head, slash, last = image.rpartition("/")
    name, colon, tag = last.partition(":")
    return head + slash + name, tag if colon else "latest"


def with_tag(image: str) -> str:
    name, tag = split_tag(image)
    return f"{name}@{tag}" if "@" in image else f"{name}:{tag}"


class Reference:
    """A whole reference: `domain` and `path` are never empty, `tag` and `digest` may be."""

    __slots__ = ("digest", "domain", "path", "tag")

    def __init__(self, domain: str, path: str, tag: str, digest: str):
        self.domain = domain
        self.path = path
        self.tag = tag
        self.digest = digest

    @property
    def name(self) -> str:
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """The name as people write it: without the hub's domain and `library/`."""
        if self.domain != HUB_DOMAIN:
            return self.name
        short = self.path.removeprefix("library/")
        return self.path if "/" in short else short

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """What `text` names, short forms made whole; no tag is added. A ValueError's text is Docker's."""
    if len(text) == 64 and _HEX.issuperset(text):
        raise ValueError(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    domain, rest = _split_domain(text)
    rest, at, digest = rest.partition("@")
    path, colon, tag = rest.partition(":")
    if path.lower() != path:
        raise ValueError(f"invalid reference format: repository name ({path}) must be lowercase")
    if not _is_domain(domain) or not all(_is_component(part) for part in path.split("/")):
        raise ValueError("invalid reference format")
    if (colon and not _is_tag(tag)) or (at and not _is_digest(digest)):
        raise ValueError("invalid reference format")
    if len(path) > _MAX_PATH:
        raise ValueError(f"repository name must not be more than {_MAX_PATH} characters")
    if at:
        _check_digest(digest)
    return Reference(domain, path, tag, digest)


def _split_domain(text: str) -> "tuple[str, str]":
    first, slash, rest = text.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost" or first.lower() != first):
        first, rest = HUB_DOMAIN, text
    if first == "index.docker.io":
        first = HUB_DOMAIN
    if first == HUB_DOMAIN and "/" not in rest:
        rest = "library/" + rest
    return first, rest


def _is_domain(text: str) -> bool:
    if text[:1] == "[":
        host, bracket, port = text[1:].partition("]")
        if not bracket or not host or not frozenset("0123456789abcdefABCDEF:").issuperset(host):
            return False
        return not port or (port[0] == ":" and port[1:].isdigit() and port.isascii())
    host, colon, port = text.partition(":")
    if colon and not (port.isdigit() and port.isascii()):
        return False
    return all(part and part[0] in _ALNUM and part[-1] in _ALNUM and _ALNUM.issuperset(part.replace("-", "")) for part in host.split("."))


def _is_component(text: str) -> bool:
    """Runs of a-z0-9 joined by one of `.`, `_`, `__` or any number of `-`."""
    if not text or text[0] not in _LOWER or text[-1] not in _LOWER:
        return False
    separator = ""
    for char in text:
        if char in _LOWER:
            if separator not in ("", ".", "_", "__") and separator.strip("-"):
                return False
            separator = ""
        elif char in "._-":
            separator += char
        else:
            return False
    return True


def _is_tag(text: str) -> bool:
    return 0 < len(text) <= _MAX_TAG and text[0] not in ".-" and _TAG.issuperset(text)


def _is_digest(text: str) -> bool:
    algorithm, colon, value = text.partition(":")
    words = algorithm.replace("_", "+").replace("-", "+").replace(".", "+").split("+")
    return bool(colon) and all(word and word[0] in _LETTERS and _ALNUM.issuperset(word) for word in words) \
        and len(value) >= 32 and _HEX.issuperset(value.lower())


def _check_digest(digest: str) -> None:
    algorithm, _, value = digest.partition(":")
    size = _DIGEST_SIZES.get(algorithm)
    if size is None:
        raise ValueError("unsupported digest algorithm")
    if len(value) != size:
        raise ValueError("invalid checksum digest length")
    if not _HEX.issuperset(value):
        raise ValueError("invalid checksum digest format")
