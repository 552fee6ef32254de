"""Image references as the user types and sees them (distribution/reference's short forms)."""


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
