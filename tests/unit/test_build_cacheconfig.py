"""The document of a build cache elsewhere, written and read; hostile ones; what the options say; rules by which a cache stays small."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.caches import cacheconfig
from builder.caches.cacheconfig import CREATED, DIFF_ID, INLINE, CacheContent, CacheEntry, Packed
from engine.config import settings
from engine.errors import InvalidParameter, KnarrError, NotImplementedYet
from engine.service.layerblobs import Form
from engine.spec.build import Endpoint, Options
from engine.spec.buildcache import CACHE_MOUNT, GIT, LOCAL, CacheRecord, Prune, rules
from engine.spec.digest import chain_ids, sha256
from engine.spec.image import Descriptor

GB = 10**9
HOUR = 3600 * GB


def digest(text: str) -> str:
    return sha256(text.encode())


def key(text: str) -> str:
    return digest(text).removeprefix("sha256:")


def blob(text: str) -> Descriptor:
    return Descriptor(media_type="application/vnd.oci.image.layer.v1.tar+gzip", digest=digest(text), size=len(text))


def described(text: str, **annotations: str) -> Descriptor:
    return Descriptor(digest=digest(text), size=len(text), annotations={DIFF_ID: digest("files " + text), **annotations})


def packed(text: str, parent: int = -1, base: str = "", **more: Any) -> Packed:
    return Packed(blob=blob(text), diff_id=digest("files " + text), parent=parent, base=base, **more)


# -- writing and reading


def test_what_was_written_is_read() -> None:
    base = digest("base")
    id = "a" * 25
    layers = [
        packed("one", base=base, keys=(key("k1"), key("k2")), created=1_700_000_000_123_456_789, id=id),
        packed("two", 0, keys=(key("k3"),), created=1_700_000_000_000_000_000),
        packed("side", base=""),
    ]
    content = cacheconfig.parse(cacheconfig.document(layers), map(cacheconfig.descriptor, layers))
    first = CacheEntry(layer=0, created=1_700_000_000_123_456_789, id=id)
    assert content.entries == {key("k1"): first, key("k2"): first, key("k3"): CacheEntry(layer=1, created=1_700_000_000_000_000_000)}
    one, two, side = content.layers
    assert (one.below, one.chain) == (base, digest(f"{base} {one.diff_id}"))
    assert (two.below, two.chain) == (one.chain, digest(f"{one.chain} {two.diff_id}"))
    assert (side.below, side.chain) == ("", side.diff_id)
    assert content.lineage(1, 2, base) == [one, two]
    assert content.lineage(1, 1, one.chain) == [two]
    assert content.lineage(2, 1, "") == [side]


def test_the_document_has_the_shape_of_buildkits() -> None:
    layers = [packed("one", keys=(key("k"),), created=1_700_000_000_500_000_000), packed("two", 0)]
    document = json.loads(cacheconfig.document(layers))
    record = {"digest": digest("k"), "results": [{"layer": 0, "createdAt": "2023-11-14T22:13:20.5Z"}]}
    # As Go writes it: a parent of 0 may be left out, none is -1.
    assert document["layers"] == [{"blob": digest("one"), "parent": -1}, {"blob": digest("two")}]
    assert [{**one, "results": [{"layer": 0, **one["results"][0]}]} for one in document["records"]] == [record]
    found = cacheconfig.descriptor(layers[0])
    assert found.annotations == {DIFF_ID: digest("files one"), CREATED: "2023-11-14T22:13:20.5Z"}


def test_the_manifest_is_an_images_or_an_index() -> None:
    config = Descriptor(media_type=cacheconfig.MEDIA_CONFIG, digest=digest("config"), size=6)
    layers = [described("a"), described("a"), described("b")]
    kind, raw = cacheconfig.manifest(config, layers, image=True, docker=False)
    found = json.loads(raw)
    assert kind == found["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert found["config"]["mediaType"] == cacheconfig.MEDIA_CONFIG
    assert [one["digest"] for one in found["layers"]] == [digest("a"), digest("b")]  # each blob once
    kind, raw = cacheconfig.manifest(config, layers, image=False, docker=True)
    found = json.loads(raw)
    assert kind == found["mediaType"] == "application/vnd.docker.distribution.manifest.list.v2+json"
    assert [one["digest"] for one in found["manifests"]] == [digest("a"), digest("b"), digest("config")]


def image(cache: object, *layers: str) -> bytes:
    return json.dumps({"rootfs": {"type": "layers", "diff_ids": [digest("files " + one) for one in layers]}, INLINE: cache}).encode()


def test_records_within_an_image() -> None:
    raw = cacheconfig.inline([(key("k"), 1, 1_700_000_000_000_000_000)])
    assert cacheconfig.inline([(key("k"), 1, 1_700_000_000_000_000_000)]) == raw
    config = image(json.loads(bytes(raw)), "base", "own")
    content = cacheconfig.parse_inline(config, [blob("base"), blob("own")])
    assert content is not None
    assert content.entries == {key("k"): CacheEntry(layer=1, created=1_700_000_000_000_000_000)}
    chains = chain_ids([digest("files base"), digest("files own")])
    assert [layer.chain for layer in content.layers] == list(chains)
    assert [layer.diff_id for layer in content.lineage(1, 1, chains[0])] == [digest("files own")]
    assert cacheconfig.parse_inline(json.dumps({"rootfs": {"diff_ids": []}}).encode(), []) is None
    with pytest.raises(InvalidParameter, match="1 layers and says what 2"):
        cacheconfig.parse_inline(config, [blob("base")])


@pytest.mark.parametrize(
    "cache", ["%%%", base64.b64encode(b"{").decode(), base64.b64encode(b'[{"results":[{"layer":7}],"digest":"D"}]').decode()]
)
def test_malformed_records_within_an_image(cache: str) -> None:
    if "D" in base64.b64decode(cache, validate=False).decode("latin-1"):
        raw = base64.b64decode(cache).replace(b'"D"', json.dumps(digest("k")).encode())
        cache = base64.b64encode(raw).decode()
    with pytest.raises(InvalidParameter):
        cacheconfig.parse_inline(image(cache, "own"), [blob("own")])


def test_buildkits_own_records_are_no_keys_of_ours() -> None:
    document = {
        "layers": [{"blob": digest("one"), "parent": -1}],
        "records": [
            {"digest": digest("with inputs"), "inputs": [[{"link": 1}]], "results": [{"layer": 0}]},
            {"digest": digest("no result")},
            {"digest": "random:text", "results": [{"layer": 0}]},
            {"digest": digest("chained"), "chains": [{"layers": [0], "createdAt": "x"}]},
        ],
    }
    content = cacheconfig.parse(json.dumps(document).encode(), [described("one")])
    assert content.entries == {}
    assert len(content.layers) == 1


# -- hostile ones


def layer(text: str, parent: int, **more: Any) -> dict[str, Any]:
    return {"blob": digest(text), "parent": parent, **more}


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([layer("a", 0)], "in a circle"),
        ([layer("a", 1), layer("b", 0)], "in a circle"),
        ([layer("a", 1), layer("b", 2), layer("c", 1)], "in a circle"),
        ([layer("a", 5)], "lies on layer 5, which there is not"),
        ([layer("a", -2)], "lies on layer -2, which there is not"),
        ([layer("x", -1)], "which its manifest does not have"),
        ([layer("bare", -1)], "is no digest"),
        ([layer("a", -1, base="sha256:zz")], "is no digest"),
        ([layer("a", -1), layer("b", 0, base=digest("q"))], "has a parent and lies on a base"),
        ([layer("huge", -1)], "is said to have"),
        ([{"blob": "../../etc/passwd", "parent": -1}], "which its manifest does not have"),
    ],
)
def test_wrong_layers_are_refused_with_the_reason(layers: list[dict[str, Any]], words: str) -> None:
    blobs = [described("a"), described("b"), described("c"), blob("bare")]
    blobs.append(Descriptor(digest=digest("huge"), size=1 << 60, annotations={DIFF_ID: digest("huge")}))
    with pytest.raises(InvalidParameter, match=words):
        cacheconfig.parse(json.dumps({"layers": layers, "records": []}).encode(), blobs)


def test_a_record_that_leads_nowhere() -> None:
    document = {"layers": [layer("a", -1)], "records": [{"digest": digest("k"), "results": [{"layer": 3}]}]}
    with pytest.raises(InvalidParameter, match="leads to layer 3"):
        cacheconfig.parse(json.dumps(document).encode(), [described("a")])


def test_too_much_is_refused() -> None:
    deep = [layer("a", number - 1) for number in range(200)]
    with pytest.raises(InvalidParameter, match="more than 128 on each other"):
        cacheconfig.parse(json.dumps({"layers": deep}).encode(), [described("a")])
    upside_down = [layer("a", number + 1 if number < 199 else -1) for number in range(200)]
    with pytest.raises(InvalidParameter, match="more than 128 on each other"):
        cacheconfig.parse(json.dumps({"layers": upside_down}).encode(), [described("a")])
    many = [layer("a", -1)] * (cacheconfig.MOST_LAYERS + 1)
    with pytest.raises(InvalidParameter, match=f"at most {cacheconfig.MOST_LAYERS}"):
        cacheconfig.parse(json.dumps({"layers": many}).encode(), [described("a")])


def test_layers_on_another_base_are_not_used() -> None:
    layers = [packed("one", base=digest("base"), keys=(key("k"),)), packed("two", 0)]
    content = cacheconfig.parse(cacheconfig.document(layers), map(cacheconfig.descriptor, layers))
    with pytest.raises(InvalidParameter, match="not on sha256"):
        content.lineage(1, 2, digest("other"))
    with pytest.raises(InvalidParameter, match="not on nothing"):
        content.lineage(1, 2, "")
    with pytest.raises(InvalidParameter):
        content.lineage(1, 3, digest("base"))
    with pytest.raises(InvalidParameter):
        content.lineage(1, 1, digest("base"))


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"{", b'{"layers": 3}', b"[" * 100_000, b"\xff", b'{"layers":[{"parent":"x"}]}'])
def test_what_is_no_document(raw: bytes) -> None:
    with pytest.raises(InvalidParameter, match="cannot be read"):
        cacheconfig.parse(raw, [])


documents = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.sampled_from([digest("a"), digest("k"), "", "x", "2023-11-14T22:13:20Z"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["layers", "records", "blob", "parent", "base", "digest", "results", "layer", "createdAt"]), inner
        )
    ),
    max_leaves=30,
)


@given(documents, documents)
def test_any_document_is_read_or_refused(layers: Any, records: Any) -> None:
    raw = json.dumps({"layers": layers, "records": records}).encode()
    try:
        content = cacheconfig.parse(raw, [described("a")])
    except InvalidParameter:
        return
    assert isinstance(content, CacheContent)
    for entry in content.entries.values():
        assert 0 <= entry.layer < len(content.layers)


@given(st.lists(st.integers(-1, 12), max_size=12))
def test_any_parents_end_at_the_bottom_or_are_refused(parents: list[int]) -> None:
    names = [chr(97 + number) for number in range(len(parents))]
    document = {"layers": [layer(name, parent) for name, parent in zip(names, parents, strict=True)]}
    try:
        content = cacheconfig.parse(json.dumps(document).encode(), map(described, names))
    except InvalidParameter:
        return
    for number, found in enumerate(content.layers):
        depth, at = 0, number
        while at >= 0:
            depth, at = depth + 1, content.layers[at].parent
        diff_ids = [one.diff_id for one in content.lineage(number, depth, "")]
        assert chain_ids(diff_ids)[-1] == found.chain


# -- options


def asked(**members: tuple[Endpoint, ...]) -> Options:
    return Options(**members)  # type: ignore[arg-type]


def end(type: str, **attributes: str) -> Endpoint:
    return Endpoint(type=type, attributes={name.replace("_", "-"): value for name, value in attributes.items()})


def test_caches_that_are_read() -> None:
    found = cacheconfig.imports(asked(cache_from=(end("registry", ref="r/c"), end("local", src="/c"), end("local", src="/d", tag="v"))))
    assert [(one.kind, one.ref, one.context, one.tag) for one in found] == [
        ("registry", "r/c", "", "latest"), ("local", "/c", "cache:1", "latest"), ("local", "/d", "cache:2", "v"),
    ]  # fmt: skip


def test_caches_that_are_written() -> None:
    outputs = (Endpoint(type="local"), Endpoint(type="image"))
    to = (
        end("inline"), end("registry", ref="r/c", mode="max", compression="zstd", compression_level="7", ignore_error="true"),
        end("local", dest="/c", oci_mediatypes="false"),
    )  # fmt: skip
    remote, local = cacheconfig.exports(asked(cache_to=to, outputs=outputs))
    assert (remote.everything, remote.form, remote.ignore_error, remote.image, remote.docker) == (True, Form("zstd", 7), True, True, False)
    assert (local.everything, local.form, local.number, local.image, local.docker) == (False, Form(), 4, False, True)


def test_records_within_images_are_wanted() -> None:
    assert cacheconfig.wants_inline(asked(cache_to=(end("inline"),)))
    assert cacheconfig.wants_inline(Options(build_args={"BUILDKIT_INLINE_CACHE": "1"}))
    assert not cacheconfig.wants_inline(Options(build_args={"BUILDKIT_INLINE_CACHE": "0"}))
    assert not cacheconfig.wants_inline(Options())


@pytest.mark.parametrize("type", ["gha", "s3", "azblob"])
def test_caches_that_are_not_there_yet(type: str) -> None:
    with pytest.raises(NotImplementedYet, match=f"--cache-from type={type}"):
        cacheconfig.imports(asked(cache_from=(end(type),)))
    with pytest.raises(NotImplementedYet, match=f"--cache-to type={type}"):
        cacheconfig.exports(asked(cache_to=(end(type),)))


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (end("nfs"), 'unknown cache exporter: "nfs"'),
        (end("registry"), "registry cache exporter requires ref"),
        (end("local"), "local cache exporter requires dest"),
        (end("registry", ref="a", mode="most"), 'invalid cache export mode: "most"'),
        (end("registry", ref="a", colour="red"), 'unknown attribute "colour"'),
        (end("registry", ref="a", compression="rar"), "unsupported layer compression"),
        (end("registry", ref="a", compression_level="x"), "non-integer value"),
        (end("registry", ref="a", image_manifest="true", oci_mediatypes="false"), "needs oci-mediatypes=true"),
        (end("registry", ref="a", compression="zstd", oci_mediatypes="false"), "needs oci-mediatypes=true"),
        (end("registry", ref="a", ignore_error="maybe"), "non-bool value"),
        (end("registry", ref="a", compression="estargz"), "compression=estargz"),
        (end("local", dest="a", reset="true"), "reset=true"),
    ],
)
def test_options_that_make_no_sense(one: Endpoint, words: str) -> None:
    with pytest.raises(KnarrError, match=words):
        cacheconfig.exports(asked(cache_to=(one,)))


@pytest.mark.parametrize(
    "one", [end("inline"), end("registry"), end("local"), end("local", src="a", digest="b"), end("local", src="a", mode="max")]
)
def test_caches_that_cannot_be_read(one: Endpoint) -> None:
    with pytest.raises(InvalidParameter):
        cacheconfig.imports(asked(cache_from=(one,)))


# -- rules


def test_the_default_rules_follow_the_disk() -> None:
    temporary, old, lru, everything = rules({}, 50 * GB)
    assert temporary == Prune(types=(LOCAL, CACHE_MOUNT, GIT), unused_for=48 * HOUR, reserved=690_000_000)
    assert lru == Prune(reserved=5 * GB, most_used=40 * GB, least_free=10 * GB)
    assert old.unused_for == 60 * 24 * HOUR
    assert (everything.all, everything.most_used) == (True, 40 * GB)
    assert rules({}, 10_000 * GB)[2] == Prune(reserved=10 * GB, most_used=100 * GB, least_free=2000 * GB)
    assert rules({"defaultKeepStorage": "20GB"}, 50 * GB)[2] == Prune(reserved=20 << 30)
    assert rules({"enabled": False}, 50 * GB) == ()


def test_rules_of_daemon_json() -> None:
    policy = [
        {"keepStorage": "512MB", "filter": ["unused-for=48h"]},
        {"reservedSpace": "1GB", "keepDuration": "72h", "filter": ["type=source.local,type=exec.cachemount"]},
        {"keepDuration": ["1h"], "filter": ["type==regular", "inuse=false", "description=x"]},
        {"maxUsedSpace": 1000, "minFreeSpace": "10GB", "all": True},
    ]
    assert settings({}, {"builder": {"gc": {"enabled": True, "policy": policy}}}).builder["gc"]["policy"] == policy
    assert rules({"policy": policy}, GB) == (
        Prune(reserved=512 << 20, unused_for=48 * HOUR),
        Prune(reserved=1 << 30, unused_for=72 * HOUR, types=(LOCAL, CACHE_MOUNT)),
        Prune(unused_for=HOUR, types=("regular",), fields=(("inuse", "false"), ("description", "x"))),
        Prune(most_used=1000, least_free=10 << 30, all=True),
    )


@pytest.mark.parametrize(
    "builder",
    [
        {"gc": {"policies": []}}, {"gc": {"policy": [{"keep": 1}]}}, {"gc": {"policy": [3]}}, {"gc": {"enabled": "yes"}}, {"gc": []},
        {"gc": {"policy": [{"filter": ["colour=red"]}]}}, {"gc": {"policy": [{"keepStorage": "much"}]}}, {"gd": {}},
        {"gc": {"policy": [{"keepDuration": "soon"}]}}, {"gc": {"policy": [{"keepDuration": -1}]}}, {"gc": {"defaultKeepStorage": -5}},
    ],
)  # fmt: skip
def test_rules_that_make_no_sense(builder: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter):
        settings({}, {"builder": builder})


@pytest.mark.parametrize("key", ["entitlements", "history"])
def test_what_of_the_builder_is_not_there_yet(key: str) -> None:
    with pytest.raises(NotImplementedYet, match=f"builder.{key}"):
        settings({}, {"builder": {key: {}}})


def record(id: str, size: int, used: int, **more: Any) -> CacheRecord:
    return CacheRecord(id=id, size=size, last_used_at=used, created_at=1, **more)


def test_what_an_image_shares_takes_no_room() -> None:
    records = [record("old", 100, 1, shared=True), record("own", 50, 2), record("new", 50, 3)]
    assert [one.id for one in Prune(all=True, most_used=60).choose(records, 0, 10)] == ["old", "own"]
    assert Prune(all=True, most_used=100).choose(records, 0, 10) == []
    assert [one.id for one in Prune(types=(LOCAL,)).choose([*records, record("context", 1, 1, type=LOCAL)], 0, 10)] == ["context"]
