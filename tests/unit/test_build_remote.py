"""Files of web servers as sources: asked for again only when they changed, checked, and contexts made of them."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from builder.graph import HttpSource
from builder.secrets import Nothing
from builder.sources.fetching import Fetcher, Sources
from builder.tree import Tree
from engine.errors import InvalidParameter, KnarrError
from engine.registry.proxies import Proxies
from engine.registry.transport import Transport
from tests.lib.registries import Reply, Request, Scripted

DATA = b"some bytes" * 1000
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
WHEN = "Wed, 21 Oct 2015 07:28:00 GMT"


class Web:
    """A server whose paths are functions of the request."""

    def __init__(self) -> None:
        self.paths: dict[str, Callable[[Request], Reply]] = {}
        self.server = Scripted(lambda request: self.paths.get(request.target, lambda _: Reply(404))(request))

    def url(self, path: str) -> str:
        return self.server.url + path

    def serve(self, path: str, data: bytes = DATA, **headers: str) -> None:
        self.paths[path] = lambda _: Reply(200, {name.replace("_", "-"): value for name, value in headers.items()}, data)


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    with made.server:
        yield made


def build(folder: Path, work: Callable[[Fetcher, Sources], object]) -> None:
    """Something that one build does."""

    async def main() -> None:
        transport = Transport(Proxies())
        try:
            sources = Sources(str(folder / "sources"), str(folder), transport)
            with trio.fail_after(60), sources.opened(Nothing()) as fetcher:
                await work(fetcher, sources)  # type: ignore[misc]
        finally:
            await transport.close()

    trio.run(main)


def fetched(folder: Path, url: str, checksum: str = "", name: str = "file") -> Tree:
    found: list[Tree] = []

    async def work(fetcher: Fetcher, _: Sources) -> None:
        found.append(await fetcher.fetch(HttpSource(url=url, filename=name, checksum=checksum)))

    build(folder, work)
    return found[0]


def test_a_file(web: Web, tmp_path: Path) -> None:
    web.serve("/x", Last_Modified=WHEN)
    tree = fetched(tmp_path, web.url("/x"))
    path = Path(tree.layers[0], "file")
    info = path.stat()
    assert path.read_bytes() == DATA and (stat.S_IMODE(info.st_mode), info.st_mtime, info.st_uid) == (0o600, 1445412480, os.geteuid())
    assert os.listdir(tree.layers[0]) == ["file"] and tree.digests == {b"file": DIGEST[7:]}
    web.serve("/y")
    assert Path(fetched(tmp_path, web.url("/y")).layers[0], "file").stat().st_mtime == 0
    assert fetched(tmp_path, web.url("/y")).identity == tree.identity


def test_what_did_not_change_is_not_fetched_again(web: Web, tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        return Reply(304) if '"one"' in request.headers.get("if-none-match", "") else Reply(200, {"ETag": '"one"'}, DATA)

    web.paths["/x"] = answer
    first = fetched(tmp_path, web.url("/x"))
    assert fetched(tmp_path, web.url("/x")).layers == first.layers
    assert [request.headers.get("if-none-match") for request in web.server.requests] == [None, '"one"']
    web.serve("/x", b"new", ETag='"two"')
    assert Path(fetched(tmp_path, web.url("/x")).layers[0], "file").read_bytes() == b"new"
    assert Path(first.layers[0], "file").read_bytes() == DATA
    web.paths["/x"] = lambda request: Reply(304, {"ETag": '"one"'})  # back to the first
    assert fetched(tmp_path, web.url("/x")).layers == first.layers
    web.paths["/d"] = lambda request: Reply(304) if request.headers.get("if-modified-since") == WHEN else Reply(
        200, {"Last-Modified": WHEN}, DATA
    )  # fmt: skip
    assert fetched(tmp_path, web.url("/d")).layers == fetched(tmp_path, web.url("/d")).layers
    assert web.server.paths().count("/d") == 2


def test_checksums(web: Web, tmp_path: Path) -> None:
    web.serve("/x")
    with pytest.raises(KnarrError, match=rf"digest mismatch for {web.url('/x')}: {DIGEST} \(expected: sha256:0000"):
        fetched(tmp_path, web.url("/x"), "sha256:" + "0" * 64)
    asked = len(web.server.requests)
    assert fetched(tmp_path, web.url("/x"), DIGEST).digests == {b"file": DIGEST[7:]}
    assert len(web.server.requests) == asked  # it is here already
    with pytest.raises(InvalidParameter, match="invalid checksum"):
        fetched(tmp_path, web.url("/x"), "md5:0")


def test_redirects_keep_passwords_to_themselves(web: Web, tmp_path: Path) -> None:
    other = Web()
    with other.server:
        other.serve("/there")
        web.paths["/x"] = lambda _: Reply(302, {"Location": "/y"})
        web.paths["/y"] = lambda _: Reply(307, {"Location": other.url("/there")})
        url = web.url("/x").replace("://", "://me:p%40ss@")
        assert Path(fetched(tmp_path, url).layers[0], "file").read_bytes() == DATA
        assert web.server.requests[0].headers["authorization"] == "Basic bWU6cEBzcw=="
        assert "authorization" not in other.server.requests[0].headers
    web.paths["/loop"] = lambda _: Reply(302, {"Location": "/loop"})
    with pytest.raises(KnarrError, match="stopped after 10 redirects"):
        fetched(tmp_path, web.url("/loop"))
    web.paths["/file"] = lambda _: Reply(302, {"Location": "file:///etc/passwd"})
    with pytest.raises(InvalidParameter, match="no address of a web server"):
        fetched(tmp_path, web.url("/file"))


def test_errors_leave_nothing(web: Web, tmp_path: Path) -> None:
    with pytest.raises(KnarrError, match=r"invalid response status 404 for http://127.0.0.1:\d+/none"):
        fetched(tmp_path, web.url("/none"))
    web.paths["/cut"] = lambda _: Reply(200, {}, DATA, cut=100)
    with pytest.raises(KnarrError, match="/cut"):
        fetched(tmp_path, web.url("/cut"))
    web.serve("/x")
    with pytest.raises(InvalidParameter, match="no name of a file"):
        fetched(tmp_path, web.url("/x"), name="../evil")
    assert os.listdir(tmp_path / "sources") == []


def archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("d/Dockerfile")
        info.size, info.uid = 6, 1000
        tar.addfile(info, io.BytesIO(b"FROM x"))
    return out.getvalue()


@pytest.mark.parametrize("data", [archive(), gzip.compress(archive())])
def test_an_archive_is_a_context(web: Web, tmp_path: Path, data: bytes) -> None:
    web.serve("/c", data, Content_Type="text/html", ETag='"e"')

    async def work(fetcher: Fetcher, sources: Sources) -> None:
        tree = await fetcher.context(web.url("/c"), "d/Dockerfile", strict=True)
        path = Path(tree.layers[0], "d/Dockerfile")
        assert path.read_text() == "FROM x" and path.stat().st_uid == 0
        records = await sources.usage()
        assert [record.in_use for record in records if record.id.startswith("context-")] == [True]

    build(tmp_path, work)


def test_text_is_a_dockerfile(web: Web, tmp_path: Path) -> None:
    web.serve("/t", b"FROM busybox\n", Content_Type="text/plain; charset=utf-8")
    web.serve("/h", b"<html>", Content_Type="text/html")

    async def work(fetcher: Fetcher, sources: Sources) -> None:
        tree = await fetcher.context(web.url("/t"), "sub/../Dockerfile")
        assert Path(tree.layers[0], "Dockerfile").read_text() == "FROM busybox\n"
        with pytest.raises(InvalidParameter, match="unsupported Content-Type 'text/html'"):
            await fetcher.context(web.url("/h"), "Dockerfile", strict=True)
        with pytest.raises(InvalidParameter, match="unable to prepare context"):
            await fetcher.context("/etc", "Dockerfile")

    build(tmp_path, work)


def test_what_a_build_uses_is_not_removed(web: Web, tmp_path: Path) -> None:
    web.serve("/x")

    async def work(fetcher: Fetcher, sources: Sources) -> None:
        tree = await fetcher.fetch(HttpSource(url=web.url("/x"), filename="file"))
        (record,) = await sources.usage()
        assert record.in_use and await sources.remove({record.id}) == 0
        fetcher.release()
        assert await sources.remove({record.id}) == record.size >= len(DATA)
        assert not os.path.exists(tree.layers[0])

    build(tmp_path, work)
