"""Provenance and the manifests that carry attestations: what they say, what they leave out, and that equal builds give equal bytes."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import msgspec
import pytest

from builder.export import attest, provenance
from builder.graph import SCRATCH, ContextSource, Copy, CopySource, GitSource, Graph, HttpSource, ImageSource, Run, Target, Vertex
from engine.errors import InvalidParameter, NotImplementedYet
from engine.spec import manifest as manifests
from engine.spec import reference
from engine.spec.build import Options
from engine.spec.image import MEDIA_MANIFEST, Descriptor, ImageConfig, Manifest
from engine.spec.platform import Platform

AMD64 = Platform(architecture="amd64")
BASE = "sha256:" + "1" * 64
FILE = "sha256:" + "2" * 64
COMMIT = "3" * 40
IMAGE = Descriptor(media_type=MEDIA_MANIFEST, digest="sha256:" + "a" * 64, size=7)

GRAPH = Graph(
    vertices=(
        Vertex(op=ImageSource(reference="busybox", image=BASE, chain="c", platform=AMD64), name="FROM", line=1),
        Vertex(op=ContextSource(name="context"), name="context"),
        Vertex(op=HttpSource(url="https://h/f", filename="f"), name="http"),
        Vertex(op=GitSource(url="https://h/r.git#main"), name="git"),
        Vertex(op=Run(args=("make",), env=(), cwd="/", proxies=("http_proxy=http://user:word@p",)), inputs=(0,), name="RUN", line=2),
        Vertex(op=Copy(sources=(CopySource(input=1, path="/"),), destination="/"), inputs=(4, 1), name="COPY", line=3),
    ),
    target=Target(root=5, config=ImageConfig(), platform=AMD64),
    images=(("docker.io/library/busybox:latest", BASE),),
)
OPTIONS = Options(
    build_args={"SECRET": "x", "NONE": None}, labels={"l": "v"}, target="t", hosts=("a:1.1.1.1",), secrets=("s",), ssh=("default",)
)


def facts(**changes: Any) -> provenance.Facts:
    given = provenance.Facts(
        options=OPTIONS, graph=GRAPH, dockerfile="FROM busybox\n", platform=AMD64, builder=AMD64, started="2026-01-01T00:00:00Z",
        finished="2026-01-01T00:00:05Z", resolved={2: FILE, 3: COMMIT}, invocation="build1",
    )  # fmt: skip
    return msgspec.structs.replace(given, **changes)


def made(attributes: dict[str, str], **changes: Any) -> dict[str, Any]:
    return dict(json.loads(json.dumps(provenance.predicate(facts(**changes), provenance.settings(attributes)))))


def test_min_names_materials_and_leaves_values_out() -> None:
    said = made({"builder-id": "https://ci/1"})
    assert said["builder"] == {"id": "https://ci/1"} and said["buildType"] == "https://mobyproject.org/buildkit@v1"
    assert said["materials"] == [
        {"uri": "pkg:docker/busybox@latest?platform=linux%2Famd64", "digest": {"sha256": "1" * 64}},
        {"uri": "https://h/f", "digest": {"sha256": "2" * 64}},
        {"uri": "https://h/r.git#main", "digest": {"sha1": COMMIT}},
    ]
    asked = said["invocation"]
    assert asked["configSource"] == {"entryPoint": "Dockerfile"} and asked["environment"] == {"platform": "linux/amd64"}
    assert asked["parameters"]["args"] == {"target": "t", "add-hosts": "a:1.1.1.1"}
    assert "secrets" not in asked["parameters"] and "buildConfig" not in said
    meta = said["metadata"]
    assert (meta["buildInvocationID"], meta["buildStartedOn"], meta["buildFinishedOn"]) == (
        "build1",
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:05Z",
    )
    assert meta["completeness"] == {"parameters": False, "environment": True, "materials": False} and meta["reproducible"] is False


def test_max_has_arguments_steps_and_the_dockerfile() -> None:
    said = made({"mode": "max", "reproducible": "true"})
    parameters = said["invocation"]["parameters"]
    assert (
        parameters["args"]["build-arg:SECRET"] == "x"
        and parameters["args"]["label:l"] == "v"
        and "build-arg:NONE" not in parameters["args"]
    )
    assert parameters["secrets"] == [{"id": "s"}] and parameters["ssh"] == [{"id": "default"}]
    assert parameters["locals"] == [{"name": "context"}, {"name": "dockerfile"}]
    steps = said["buildConfig"]["llbDefinition"]
    assert [step["id"] for step in steps] == [f"step{number}" for number in range(6)]
    assert steps[5]["inputs"] == ["step4:0", "step1:0"] and steps[0]["op"]["identifier"] == "docker-image://busybox"
    assert set(said["buildConfig"]["digestMapping"].values()) == {step["id"] for step in steps}
    source = said["metadata"]["https://mobyproject.org/buildkit@v1#metadata"]["source"]
    assert base64.b64decode(source["infos"][0]["data"]) == b"FROM busybox\n"
    assert source["locations"]["step4"]["locations"][0]["ranges"][0]["start"] == {"line": 2}
    assert said["metadata"]["completeness"]["parameters"] is True and said["metadata"]["reproducible"] is True


def test_passwords_of_proxies_are_in_nothing() -> None:
    for version in ("v0.2", "v1"):
        assert "word@p" not in json.dumps(made({"mode": "max", "version": version}))


def test_the_newer_version_says_the_same() -> None:
    said = made({"version": "v1", "mode": "max"})
    definition, run = said["buildDefinition"], said["runDetails"]
    assert definition["externalParameters"]["configSource"] == {"path": "Dockerfile"}
    assert definition["resolvedDependencies"] == made({})["materials"]
    assert definition["internalParameters"]["builderPlatform"] == "linux/amd64" and definition["internalParameters"]["buildConfig"]
    assert run["metadata"]["invocationId"] == "build1" and run["metadata"]["buildkit_completeness"]["request"] is True


def test_a_remote_context_is_where_the_dockerfile_is_from() -> None:
    said = made({}, options=Options(remote="https://h/r.git#main"))
    assert said["invocation"]["configSource"] == {"entryPoint": "Dockerfile", "uri": "https://h/r.git#main", "digest": {"sha1": COMMIT}}
    assert "locals" not in said["invocation"]["parameters"] and said["metadata"]["completeness"]["parameters"] is True


def test_what_uses_no_network_and_nothing_sent_is_complete() -> None:
    graph = Graph(
        vertices=(Vertex(op=Run(args=("x",), env=(), cwd="/", network="none"), inputs=(SCRATCH,), name="RUN"),),
        target=Target(root=0, config=ImageConfig(), platform=AMD64),
    )
    said = made({}, graph=graph)
    assert (
        said["metadata"]["completeness"]["materials"] is True and said["metadata"]["https://mobyproject.org/buildkit@v1#hermetic"] is True
    )


def test_a_build_without_an_invocation_is_named_by_its_content() -> None:
    first, second = made({}, invocation=""), made({}, invocation="")
    assert first == second and len(first["metadata"]["buildInvocationID"]) == 25
    assert made({}, invocation="", dockerfile="x") == first  # it is not in mode=min
    assert made({"mode": "max"}, invocation="", dockerfile="x") != made({"mode": "max"}, invocation="")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"mode": "most"}, 'invalid mode "most"'),
        ({"version": "v2"}, 'invalid version "v2"'),
        ({"reproducible": "maybe"}, 'invalid value "maybe" for reproducible'),
        ({"filename": "../x"}, "invalid filename"),
        ({"nosuch": "1"}, 'invalid attribute "nosuch"'),
        ({"disabled": "perhaps"}, 'invalid value "perhaps" for disabled'),
    ],
)
def test_attributes_that_make_no_sense(attributes: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        attest.wanted(Options(attest={"provenance": attributes}))


def test_what_is_wanted() -> None:
    assert not attest.wanted(Options())
    assert not attest.wanted(Options(attest={"provenance": {"disabled": "true"}, "sbom": {"disabled": "1"}}))
    found = attest.wanted(Options(attest={"provenance": {"mode": "max", "inline-only": "true"}, "sbom": {}}))
    assert found.sbom and found.provenance is not None and found.provenance.max and found.provenance.inline_only
    with pytest.raises(NotImplementedYet, match="generator"):
        attest.wanted(Options(attest={"sbom": {"generator": "docker/buildkit-syft-scanner"}}))
    with pytest.raises(InvalidParameter, match='unknown attestation type "x"'):
        attest.wanted(Options(attest={"x": {}}))


def attached(*names: str) -> attest.Attached:
    one = attest.Attestation(provenance.V02, provenance.predicate(facts(), provenance.Settings()), "provenance.json")
    return attest.attach(
        IMAGE, [reference.parse(name) for name in names], AMD64, [one, attest.Attestation("https://spdx.dev/Document", {}, "s")]
    )


def test_the_manifest_in_the_index() -> None:
    found = attached("app:1", "host:5000/team/app:2")
    blobs = dict(found.blobs)
    assert all("sha256:" + hashlib.sha256(data).hexdigest() == digest for digest, data in found.blobs)
    entry = found.descriptor
    assert entry.annotations == {"vnd.docker.reference.digest": IMAGE.digest, "vnd.docker.reference.type": "attestation-manifest"}
    assert (entry.platform, entry.size) == (Platform(os="unknown", architecture="unknown"), len(blobs[entry.digest]))
    assert manifests.is_attestation(entry)
    manifest = manifests.parse(blobs[entry.digest], MEDIA_MANIFEST, "x")
    assert isinstance(manifest, Manifest) and manifest.layers is not None
    config = json.loads(blobs[manifest.config.digest])
    assert config["rootfs"]["diff_ids"] == [layer.digest for layer in manifest.layers] and config["os"] == "unknown"
    for layer, kind in zip(manifest.layers, (provenance.V02, "https://spdx.dev/Document"), strict=True):
        assert layer.media_type == "application/vnd.in-toto+json" and layer.annotations == {"in-toto.io/predicate-type": kind}
        statement = json.loads(blobs[layer.digest])
        assert statement["_type"] == "https://in-toto.io/Statement/v0.1" and statement["predicateType"] == kind
        assert statement["subject"] == [
            {"name": "pkg:docker/app@1?platform=linux%2Famd64", "digest": {"sha256": "a" * 64}},
            {"name": "pkg:docker/host:5000/team/app@2?platform=linux%2Famd64", "digest": {"sha256": "a" * 64}},
        ]


def test_an_image_without_a_name_is_still_a_subject() -> None:
    found = attached()
    assert b'"subject":[{"name":"_","digest":' in found.blobs[0][1]


def test_equal_input_gives_equal_bytes() -> None:
    assert attached("a") == attached("a")
