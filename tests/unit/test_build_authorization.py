"""Secrets that open servers to a build: which is for whom, and that nobody else hears of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from builder.graph import GitSource, HttpSource
from builder.sources.authorization import for_git, for_web
from builder.sources.fetching import Sources
from builder.tree import Tree
from engine.errors import InvalidParameter, KnarrError
from engine.registry.proxies import Proxies
from engine.registry.transport import Transport
from tests.lib.registries import Reply, Request, Scripted
from tests.unit.test_build_git import git, http_backend

SECRET = "hush-hush"
TOKEN = "basic eC1hY2Nlc3MtdG9rZW46aHVzaC1odXNo"  # of SECRET, as x-access-token


def given(**secrets: str) -> dict[str, bytes]:
    return {name.replace("__", "."): value.encode() for name, value in secrets.items()}


def test_who_gets_which_secret_of_git() -> None:
    def settings(remote: str, *, of_host: bool = False, **secrets: str) -> dict[str, str]:
        found = for_git(remote, given(**secrets), of_host=of_host)
        return found.settings if found is not None else {}

    token = "Authorization: basic eC1hY2Nlc3MtdG9rZW46dA=="
    own = {"http.https://h/x.git.extraheader": token, "http.https://h/x.git.followRedirects": "false"}
    assert settings("https://h/x.git", GIT_AUTH_TOKEN="t\n") == own
    assert settings("https://github.com/me/x.git", GIT_AUTH_TOKEN="t") == {"http.https://github.com/.extraheader": token}
    both = settings("https://h/x", GIT_AUTH_TOKEN="t", GIT_AUTH_HEADER="Bearer b")
    assert both["http.https://h/x.extraheader"] == "Authorization: Bearer b"
    assert settings("https://h/x.git", GIT_AUTH_TOKEN__h="t", GIT_AUTH_HEADER="no") == own
    assert settings("https://h/x.git", GIT_AUTH_TOKEN__h="t", GIT_AUTH_HEADER="no", of_host=True) == own
    assert settings("https://h/x.git", GIT_AUTH_TOKEN__other="t", GIT_AUTH_HEADER="no", of_host=True) == {}
    assert settings("git@h:x", GIT_AUTH_TOKEN="t") == {}
    with pytest.raises(InvalidParameter, match="GIT_AUTH_HEADER") as error:
        settings("https://h/x", GIT_AUTH_HEADER=f"{SECRET}\nHost: evil")
    assert SECRET not in str(error.value)
    assert SECRET not in repr(for_git("https://h/x", given(GIT_AUTH_HEADER=SECRET)))


def test_who_gets_which_secret_of_the_web() -> None:
    def header(url: str, **secrets: str) -> str:
        return for_web(url, given(**secrets))

    assert header("https://h.example:8443/x", **{"HTTP_AUTH_TOKEN_h.example": "t\n"}) == "Bearer t"
    assert header("https://me:pw@H.example/x", **{"HTTP_AUTH_HEADER_h.Example": "Basic b"}) == "Basic b"
    assert header("http://h/x", HTTP_AUTH_HEADER_h="Basic b", HTTP_AUTH_TOKEN_h="t") == "Bearer t"
    assert header("http://h/x", HTTP_AUTH_TOKEN__h="t") == "Bearer t"
    assert header("http://[::1]:80/x", **{"HTTP_AUTH_TOKEN_::1": "t"}) == "Bearer t"
    for name in (
        "HTTP_AUTH_TOKEN",
        "HTTP_AUTH_HEADER",
        "HTTP_AUTH_TOKEN_",
        "HTTP_AUTH_TOKEN_other",
        "HTTP_AUTH_TOKEN_x.h",
        "GIT_AUTH_TOKEN",
    ):
        assert header("http://h/x", **{name: "t"}) == ""
    for value in ("a\nHost: evil", "\u00fc", "a\0b"):
        with pytest.raises(InvalidParameter, match="HTTP_AUTH_HEADER_h"):
            header("http://h/x", HTTP_AUTH_HEADER_h=value)


class Servers:
    """`one` and `other` are servers of two origins: what they answer, and with which authorization they were asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Request], Reply]] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.one = Scripted(lambda request: self._answer("one", request))
        self.other = Scripted(lambda request: self._answer("other", request))

    def _answer(self, name: str, request: Request) -> Reply:
        self.asked.append((name, request.target.partition("?")[0], request.headers.get("authorization")))
        return self.answers[name](request) if name in self.answers else Reply(404)

    def authorizations(self, name: str) -> set[str | None]:
        return {value for server, _, value in self.asked if server == name}


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    with made.one, made.other:
        yield made


class Gifts:
    agents: frozenset[str] = frozenset()

    def __init__(self, secrets: dict[str, bytes]) -> None:
        self.secrets = secrets

    async def connect(self, id: str, stream: trio.SocketStream) -> None:
        raise AssertionError(id)


def fetched(folder: Path, op: HttpSource | GitSource, **secrets: str) -> Tree:
    """A source as one build fetches it; nothing that is kept of it has the secret."""

    async def main() -> Tree:
        transport = Transport(Proxies())
        try:
            sources = Sources(str(folder / "sources"), str(folder), transport)
            with trio.fail_after(120), sources.opened(Gifts(given(**secrets))) as fetcher:
                return await fetcher.fetch(op)
        finally:
            await transport.close()

    try:
        return trio.run(main)
    finally:
        for top, _, files in os.walk(folder):
            assert SECRET not in top
            for name in files:
                assert SECRET.encode() not in Path(top, name).read_bytes() and TOKEN[6:].encode() not in Path(top, name).read_bytes()


def content(tree: Tree) -> bytes:
    return Path(tree.layers[0], "file").read_bytes()


def private(request: Request) -> Reply:
    """A file for who has the token, and another one for everybody else."""
    if request.headers.get("authorization") == f"Bearer {SECRET}":
        return Reply(200, {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"private")
    if "if-modified-since" in request.headers:
        return Reply(304)
    return Reply(200, {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"public")


def web(url: str) -> HttpSource:
    return HttpSource(url=url, filename="file")


def test_a_file_behind_a_token(servers: Servers, tmp_path: Path) -> None:
    servers.answers["one"] = lambda request: private(request) if "authorization" in request.headers else Reply(401)
    url = f"{servers.one.url}/file"
    with pytest.raises(KnarrError, match="401"):
        fetched(tmp_path, web(url))
    with pytest.raises(KnarrError, match="401"):
        fetched(tmp_path, web(url), HTTP_AUTH_TOKEN_other=SECRET, HTTP_AUTH_TOKEN=SECRET, GIT_AUTH_TOKEN=SECRET)
    assert content(fetched(tmp_path, web(url), **{"HTTP_AUTH_TOKEN_127.0.0.1": SECRET})) == b"private"
    assert content(fetched(tmp_path, web(url), **{"HTTP_AUTH_HEADER_127.0.0.1": f"Bearer {SECRET}"})) == b"private"
    with pytest.raises(KnarrError, match="401"):  # what one build was given is not another's
        fetched(tmp_path, web(url))


def test_files_of_different_users_are_not_taken_for_each_other(servers: Servers, tmp_path: Path) -> None:
    servers.answers["one"] = private
    op, secrets = web(f"{servers.one.url}/file"), {"HTTP_AUTH_TOKEN_127.0.0.1": SECRET}
    assert content(fetched(tmp_path, op, **secrets)) == b"private"
    assert content(fetched(tmp_path, op)) == b"public"
    assert content(fetched(tmp_path, op, **secrets)) == b"private"
    servers.answers["one"] = lambda _: Reply(304)
    with pytest.raises(KnarrError, match="304"):  # it was not asked whether something is unchanged
        fetched(tmp_path, op, **secrets)


def test_a_redirect_elsewhere_does_not_get_the_token(servers: Servers, tmp_path: Path) -> None:
    def one(request: Request) -> Reply:
        return Reply(302, {"Location": "/second" if request.target == "/file" else f"{servers.other.url}/file"})

    servers.answers["one"], servers.answers["other"] = one, lambda _: Reply(302, {"Location": f"{servers.one.url}/back"})
    host = {"HTTP_AUTH_TOKEN_127.0.0.1": SECRET}
    with pytest.raises(KnarrError, match="redirects") as error:
        fetched(tmp_path, web(f"{servers.one.url}/file"), **host)
    assert SECRET not in str(error.value)
    told = [(name, path) for name, path, value in servers.asked if value == f"Bearer {SECRET}"]
    assert told == [("one", "/file"), ("one", "/second")] and servers.authorizations("other") == {None}


def test_a_repository_that_moved(servers: Servers, tmp_path: Path) -> None:
    repositories = tmp_path / "repositories"
    (repositories / "new").mkdir(parents=True)
    git(repositories / "new", "init", "--quiet")
    (repositories / "new" / "a").write_text("1")
    git(repositories / "new", "add", "-A")
    git(repositories / "new", "commit", "--quiet", "-m", "m")
    inner = http_backend(repositories, TOKEN)

    def within(request: Request) -> Reply:
        if request.target.startswith("/old"):
            return Reply(301, {"Location": "/new/.git" + request.target.removeprefix("/old")})
        return inner(request)

    servers.answers["one"] = within
    tree = fetched(tmp_path / "kept", GitSource(url=f"{servers.one.url}/old"), GIT_AUTH_TOKEN=SECRET)
    assert (Path(tree.layers[0]) / "a").read_text() == "1"

    # To another server: it gets nothing but what is for it by name.
    def elsewhere(request: Request) -> Reply:
        return Reply(301, {"Location": f"{servers.other.url}/new/.git{request.target.removeprefix('/old')}"})

    def open_to_all(request: Request) -> Reply:
        request.headers["authorization"] = TOKEN
        return inner(request)

    servers.answers["one"], servers.answers["other"] = elsewhere, open_to_all
    url = f"{servers.one.url}/old"
    fetched(tmp_path / "all", GitSource(url=url), GIT_AUTH_TOKEN=SECRET)
    assert servers.authorizations("other") == {None}
    fetched(tmp_path / "header", GitSource(url=url), GIT_AUTH_HEADER=f"Bearer {SECRET}")
    assert servers.authorizations("other") == {None}
    servers.answers["other"] = inner
    with pytest.raises(KnarrError) as error:
        fetched(tmp_path / "none", GitSource(url=url), GIT_AUTH_TOKEN=SECRET)
    assert SECRET not in str(error.value) and TOKEN[6:] not in str(error.value)
    assert servers.authorizations("other") == {None}
    by_name = {f"GIT_AUTH_TOKEN.{servers.other.url.rpartition('/')[2]}": SECRET}
    fetched(tmp_path / "named", GitSource(url=url), GIT_AUTH_TOKEN="another", **by_name)
    assert TOKEN in servers.authorizations("other") and "another" not in str(servers.authorizations("other"))
