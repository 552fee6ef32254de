"""Manifests and indexes from outside: whatever bytes come, they are taken for one thing or refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidParameter, KnarrError, NotFound
from engine.spec import image as spec
from engine.spec import manifest as manifests
from engine.spec import platform as platforms
from engine.spec.platform import Platform

D = "sha256:" + "0" * 64
MANIFEST = {"schemaVersion": 2, "config": {"mediaType": spec.MEDIA_CONFIG, "digest": D, "size": 2}, "layers": []}
INDEX = {"schemaVersion": 2, "manifests": []}
LAYER = {"mediaType": spec.MEDIA_LAYER + "+gzip", "digest": D, "size": 5}


def parsed(document: Any, media_type: str = "") -> spec.Manifest | spec.Index:
    return manifests.parse(json.dumps(document).encode(), media_type, "busybox:latest")


def entry(platform: str, **more: Any) -> dict[str, Any]:
    wanted = platforms.parse(platform)
    described = {"os": wanted.os, "architecture": wanted.architecture, "variant": wanted.variant}
    return {
        "mediaType": spec.MEDIA_MANIFEST,
        "digest": "sha256:" + platform.encode().hex().ljust(64, "0")[:64],
        "size": 7,
        "platform": described,
        **more,
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
descriptors = st.fixed_dictionaries(
    {},
    optional={
        "mediaType": st.sampled_from([spec.MEDIA_MANIFEST, spec.MEDIA_INDEX, spec.MEDIA_LAYER, "\x1b[31m", ""]) | json_values,
        "digest": st.sampled_from([D, "sha256:../../../etc/passwd", "sha384:" + "0" * 96, ""]) | json_values,
        "size": st.integers(-5, 2**70) | json_values,
        "platform": st.fixed_dictionaries({}, optional={"os": st.text(max_size=5), "architecture": st.text(max_size=5)}) | json_values,
        "urls": json_values,
    },
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "schemaVersion": st.sampled_from([1, 2, 3]) | json_values,
        "mediaType": st.sampled_from([*sorted(spec.MANIFESTS | spec.INDEXES), ""]) | json_values,
        "config": descriptors | json_values,
        "layers": st.lists(descriptors, max_size=3) | json_values,
        "manifests": st.lists(descriptors, max_size=3) | json_values,
        "fsLayers": json_values,
    },
)


@settings(max_examples=200, deadline=None)
@given(
    document=documents | json_values,
    media_type=st.sampled_from([*sorted(spec.MANIFESTS | spec.INDEXES), "", "text/html; x"]) | st.text(max_size=9),
)
def test_any_json_is_understood_or_refused(document: Any, media_type: str) -> None:
    raw = json.dumps(document).encode()
    told = ""
    try:
        found = manifests.parse(raw, media_type, "x")
        if isinstance(found, spec.Manifest):
            manifests.image(found, "x")
            manifests.config(raw, found, "x")
        else:
            chosen = manifests.choose(found, Platform("amd64"), "x")
            assert 0 <= chosen.size <= manifests.MANIFEST_MAX
    except KnarrError as error:
        told = str(error)
    assert told.isprintable()  # what a registry wrote must not reach a terminal as it is


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=200))
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidParameter):
        manifests.parse(raw, "", "x")


@pytest.mark.parametrize(
    ("document", "media_type", "text"),
    [
        ({**MANIFEST, "manifests": []}, "", "index"),
        (MANIFEST, spec.MEDIA_INDEX, "media type"),
        (INDEX, spec.MEDIA_MANIFEST, "media type"),
        ({**MANIFEST, "mediaType": spec.MEDIA_INDEX}, "", "media type"),
        ({**MANIFEST, "schemaVersion": 1}, "", "schema 1"),
        ({"schemaVersion": 1, "fsLayers": [], "history": []}, "", "schema 1"),
        ({**MANIFEST, "layers": [{**LAYER, "digest": "sha256:../../../etc/passwd"}]}, "", "no digest"),
        ({**MANIFEST, "layers": [{**LAYER, "digest": "sha384:" + "0" * 96}]}, "", "no digest"),
        ({**MANIFEST, "layers": [{**LAYER, "size": -1}]}, "", "size"),
        ({**MANIFEST, "layers": [{**LAYER, "size": 1 << 43}]}, "", "size"),
        ({**MANIFEST, "config": {**MANIFEST["config"], "size": 1 << 30}}, "", "size"),  # type: ignore[dict-item]
        ({**INDEX, "manifests": [{"digest": D, "size": 5 << 20}]}, "", "size"),
        ({**INDEX, "manifests": [entry("linux/amd64")] * 1001}, "", "entries"),
        ({**MANIFEST, "layers": [LAYER] * 129}, "", "128"),
    ],
)
def test_what_is_refused_and_why(document: Any, media_type: str, text: str) -> None:
    with pytest.raises(InvalidParameter, match=text):
        parsed(document, media_type)


def test_128_layers_are_taken() -> None:
    assert len(parsed({**MANIFEST, "layers": [LAYER] * 128}).layers or ()) == 128  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"schemaVersion":2,"manifests":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"schemaVersion":2,"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"schemaVersion":2,"config":' + b" " * (5 << 20) + b"{}}",
    ],
    ids=["lists", "objects", "long"],
)
def test_deep_and_long_ones_end_as_errors(raw: bytes) -> None:
    with pytest.raises(InvalidParameter):
        manifests.parse(raw, "", "x")


def test_a_million_keys_are_read_over() -> None:
    raw = json.dumps({**INDEX, "annotations": {str(n): "" for n in range(300_000)}}, separators=(",", ":")).encode()
    assert len(raw) < manifests.MANIFEST_MAX
    assert isinstance(manifests.parse(raw, "", "x"), spec.Index)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"layers": [{**LAYER, "urls": ["https://example.invalid/layer"]}]}, "foreign"),
        ({"layers": [{**LAYER, "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}]}, "foreign"),
        ({"layers": [{**LAYER, "mediaType": "application/\x1b[2Jzip"}]}, "unknown media type"),
        ({"config": {"mediaType": "application/vnd.cncf.helm\x1b[2J", "digest": D, "size": 2}}, "no image but"),
    ],
)
def test_what_is_no_image(change: dict[str, Any], text: str) -> None:
    found = parsed({**MANIFEST, **change})
    assert isinstance(found, spec.Manifest)
    with pytest.raises(InvalidParameter, match=text) as caught:
        manifests.image(found, "x")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        (["linux/amd64", "linux/arm64"], "linux/arm64", "linux/arm64"),
        (["linux/arm/v6", "linux/arm/v7", "linux/arm64"], "linux/arm/v7", "linux/arm/v7"),
        (["linux/arm/v6", "linux/arm/v7"], "linux/arm/v6", "linux/arm/v6"),
        (["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", "linux/arm/v6"),
        (["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "linux/arm64", "linux/arm/v7"),
        (["linux/arm/v7"], "linux/arm/v6", None),
        (["linux/386"], "linux/amd64", "linux/386"),
        (["windows/amd64", "linux/amd64"], "linux/amd64", "linux/amd64"),
        (["linux/s390x"], "linux/amd64", None),
        ([], "linux/amd64", None),
    ],
)
def test_the_best_platform(offered: list[str], wanted: str, chosen: str | None) -> None:
    index = parsed({**INDEX, "manifests": [entry(one) for one in offered]})
    assert isinstance(index, spec.Index)
    if chosen is None:
        with pytest.raises(NotFound, match="no matching manifest for"):
            manifests.choose(index, platforms.parse(wanted), "x")
    else:
        assert manifests.choose(index, platforms.parse(wanted), "x").digest == entry(chosen)["digest"]


def test_attestations_are_never_chosen() -> None:
    other = {**entry("linux/amd64"), "platform": {"os": "unknown", "architecture": "unknown"}}
    index = parsed({**INDEX, "manifests": [other]})
    assert isinstance(index, spec.Index)
    with pytest.raises(NotFound):
        manifests.choose(index, Platform("amd64"), "x")


@pytest.mark.parametrize("diff_ids", [[], [D, D], ["sha256:xyz"], ["sha512:" + "0" * 128], None, 7])
def test_a_configuration_must_fit_its_manifest(diff_ids: Any) -> None:
    found = parsed({**MANIFEST, "layers": [LAYER]})
    assert isinstance(found, spec.Manifest)
    raw = json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    with pytest.raises(InvalidParameter):
        manifests.config(raw, found, "x")
