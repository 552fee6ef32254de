"""Git repositories as sources: addresses, what is fetched, what a checkout looks like, and what a hostile repository can do."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from builder.graph import GitSource
from builder.language.giturl import Repository, parse
from builder.sources import gitrun
from builder.sources.git import Checkouts
from builder.sources.kept import Kept
from builder.tree import Tree
from engine.errors import InvalidParameter, KnarrError
from tests.lib.buildwork import running, wait
from tests.lib.registries import Reply, Request, Scripted, free_port

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("https://h/x.git", Repository(remote="https://h/x.git")),
        ("HTTPS://h:8443/x.git#", Repository(remote="https://h:8443/x.git")),
        ("https://h/x.git#main", Repository(remote="https://h/x.git", ref="main")),
        ("https://h/x.git#main:a/b", Repository(remote="https://h/x.git", ref="main", subdir="a/b")),
        ("https://h/x.git#:a/../../b/", Repository(remote="https://h/x.git", subdir="b")),
        (f"git://h/x#{SHA}", Repository(remote="git://h/x", ref=SHA)),
        ("ssh://git@h/x", Repository(remote="ssh://git@h/x")),
        ("git@h:me/x.git#v1:/sub", Repository(remote="git@h:me/x.git", ref="v1", subdir="sub")),
        ("git@h:x?tag=v1", Repository(remote="git@h:x", ref="refs/tags/v1")),
        ("github.com/me/x", Repository(remote="https://github.com/me/x")),
        ("https://h/x.git?branch=dev&subdir=a", Repository(remote="https://h/x.git", ref="refs/heads/dev", subdir="a")),
        ("https://h/x.git?tag=refs/tags/v2", Repository(remote="https://h/x.git", ref="refs/tags/v2")),
        (f"https://h/x.git?commit={SHA}", Repository(remote="https://h/x.git", ref=SHA, checksum=SHA)),
        (f"https://h/x.git?ref=main&checksum={SHA[:9]}", Repository(remote="https://h/x.git", ref="main", checksum=SHA[:9])),
        ("https://h/x.git?keep-git-dir&submodules=0", Repository(remote="https://h/x.git", keep_git_dir=True, submodules=False)),
    ],
)
def test_addresses(url: str, wanted: Repository) -> None:
    assert parse(url) == wanted


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://h/x.git?tag=a&branch=b", "branch conflicts with tag"),
        ("https://h/x.git?ref=b#a", 'ref conflicts: "a" vs "b"'),
        ("https://h/x.git?subdir=b#a:c", 'subdir conflicts: "c" vs "b"'),
        ("https://h/x.git?ref=a&ref=b", 'query "ref" has multiple values'),
        ("https://h/x.git?ref=", 'query "ref" has no value'),
        ("https://h/x.git?colour=red", 'unexpected query "colour"'),
        ("https://h/x.git?submodules=maybe", 'invalid submodules value: "maybe"'),
        ("https://h/x.git?commit=--upload-pack", "invalid checksum"),
        ("https://h/x.git#--upload-pack=evil", "invalid ref"),
        ("https://h/x.git#a..b", "invalid ref"),
        ("ssh://-oProxyCommand=evil/x", "strange host"),
        ("git@h:-x", "strange host or path"),
        ("file:///etc", "no address"),
        ("ext::sh -c evil", "no address"),
        ("/srv/x.git", "no address"),
        ("https://h/x.git\n--upload", "control characters"),
    ],
)
def test_bad_addresses(url: str, told: str) -> None:
    with pytest.raises(InvalidParameter, match=told):
        parse(url)


def test_passwords_are_not_shown() -> None:
    assert parse("https://me:secret@h/x.git").shown == "https://me:xxxxx@h/x.git"


# -- real repositories


def git(folder: Path, *arguments: str) -> str:
    environment = {
        "PATH": os.environ["PATH"], "HOME": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "GIT_ALLOW_PROTOCOL": "file:git",
    }  # fmt: skip
    settings = ["-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false", "-c", "safe.directory=*"]
    return subprocess.run(["git", *settings, *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


class Server:
    """`git daemon` on loopback with the repositories below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        command = ["git", "daemon", "--reuseaddr", "--export-all", f"--base-path={folder}", "--listen=127.0.0.1", f"--port={self.port}"]
        environment = {"PATH": os.environ["PATH"], "HOME": "/dev/null", "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory"}
        self.process = subprocess.Popen(
            command, env={**environment, "GIT_CONFIG_VALUE_0": "*"}, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait(self._listens)

    def _listens(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def url(self, name: str) -> str:
        return f"git://127.0.0.1:{self.port}/{name}"

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()

    def repository(self, name: str, files: dict[str, str]) -> Path:
        path = self.folder / name
        path.mkdir()
        git(path, "init", "--quiet")
        self.commit(path, files)
        return path

    def commit(self, path: Path, files: dict[str, str]) -> str:
        for file, text in files.items():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_text(text)
        git(path, "add", "-A")
        git(path, "commit", "--quiet", "-m", "m")
        return git(path, "rev-parse", "HEAD").strip()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("repositories"))
    yield made
    made.stop()


@pytest.fixture
def checkouts(tmp_path: Path) -> Checkouts:
    return Checkouts(Kept(str(tmp_path / "kept")))


def fetch(checkouts: Checkouts, url: str, *, keep: bool = False, checksum: str = "", secrets: dict[str, bytes] | None = None) -> Tree:
    async def main() -> Tree:
        with trio.fail_after(60):
            return (await checkouts.fetch(GitSource(url=url, keep_git_dir=keep, checksum=checksum), secrets))[1]

    return trio.run(main)


def names(tree: Tree) -> set[str]:
    top = Path(tree.layers[0])
    return {str(path.relative_to(top)) for path in top.rglob("*") if ".git" not in path.relative_to(top).parts}


def test_a_checkout(server: Server, checkouts: Checkouts) -> None:
    path = server.repository("plain", {"a": "1", "bin/run": "#!", "d/.gitignore": "x"})
    os.chmod(path / "bin/run", 0o777)
    os.symlink("/etc/passwd", path / "link")
    commit = server.commit(path, {"a": "2"})
    tree = fetch(checkouts, server.url("plain"))
    top = Path(tree.layers[0])
    assert names(tree) == {"a", "bin", "bin/run", "d", "d/.gitignore", "link"} and not (top / ".git").exists()
    assert (top / "a").read_text() == "2" and os.readlink(top / "link") == "/etc/passwd"
    modes = {name: stat.S_IMODE((top / name).stat().st_mode) for name in ("a", "bin", "bin/run")}
    assert modes == {"a": 0o644, "bin": 0o755, "bin/run": 0o755} and (top / "a").stat().st_uid == os.geteuid()
    assert tree.identity == f"git {commit}" and stat.S_IMODE(top.stat().st_mode) == 0o755


def test_refs_and_subdirs(server: Server, checkouts: Checkouts) -> None:
    path = server.repository("refs", {"a": "first", "sub/deep/x": "x"})
    first = git(path, "rev-parse", "HEAD").strip()
    git(path, "tag", "light")
    git(path, "tag", "-a", "noted", "-m", "n")
    git(path, "checkout", "--quiet", "-b", "dev/x")
    second = server.commit(path, {"a": "second"})
    git(path, "branch", "light")  # a branch with a tag's name: the tag is meant
    git(path, "checkout", "--quiet", "main")
    url = server.url("refs")
    for ref, commit in (
        ("main", first), ("light", first), ("noted", first), ("dev/x", second), ("refs/heads/light", second), (second, second),
        (second[:10], second), ("", first),
    ):  # fmt: skip
        assert fetch(checkouts, f"{url}#{ref}").identity == f"git {commit}", ref
    assert fetch(checkouts, f"{url}?branch=light").identity == f"git {second}"
    tree = fetch(checkouts, f"{url}#main:sub/deep")
    assert names(tree) == {"x"} and tree.identity == f"git {first}:sub/deep"
    with pytest.raises(InvalidParameter, match="failed to open subdir none: no such file"):
        fetch(checkouts, f"{url}#main:none")
    with pytest.raises(KnarrError, match="repository does not contain ref nonsense"):
        fetch(checkouts, f"{url}#nonsense")
    with pytest.raises(KnarrError, match=f"expected checksum to match {second}, got {first}"):
        fetch(checkouts, f"{url}#main", checksum=second)
    assert fetch(checkouts, f"{url}#main", checksum=first[:12]).identity == f"git {first}"


def test_a_branch_that_moves_and_a_commit_that_is_here(server: Server, checkouts: Checkouts) -> None:
    path = server.repository("moves", {"a": "1"})
    url = server.url("moves")
    first = fetch(checkouts, url)
    commit = server.commit(path, {"a": "2"})
    second = fetch(checkouts, url)
    assert Path(first.layers[0], "a").read_text() == "1" and Path(second.layers[0], "a").read_text() == "2"
    git(path, "reset", "--quiet", "--hard", "HEAD~1")
    assert fetch(checkouts, url).layers == first.layers
    other = Checkouts(Kept(str(Path(checkouts.kept.tree("x")).parents[1])))
    assert fetch(other, f"git://127.0.0.1:{server.port}/moves#{commit}").layers == second.layers
    os.rename(path, path.with_name("moved"))  # nobody is asked for a commit that is here
    assert fetch(checkouts, f"{url}#{commit}").layers == second.layers


def test_the_git_folder_can_be_kept(server: Server, checkouts: Checkouts) -> None:
    path = server.repository("kept", {"a": "1"})
    git(path, "tag", "-a", "v1", "-m", "n")
    tree = fetch(checkouts, server.url("kept") + "#v1", keep=True)
    top = Path(tree.layers[0])
    assert git(top, "status", "--porcelain") == "" and git(top, "describe", "--tags").strip() == "v1"
    assert git(top, "remote", "get-url", "origin").strip() == server.url("kept")
    assert tree.identity.endswith(".git") and not (top / ".git/hooks").exists()


def test_submodules(server: Server, checkouts: Checkouts) -> None:
    server.repository("leaf", {"leaf": "l"})
    inner = server.repository("inner", {"inner": "i"})
    git(inner, "submodule", "--quiet", "add", server.url("leaf"), "leaf")
    server.commit(inner, {})
    outer = server.repository("outer", {"outer": "o"})
    git(outer, "submodule", "--quiet", "add", "../inner", "mods/inner")
    server.commit(outer, {})
    tree = fetch(checkouts, server.url("outer"))
    assert names(tree) == {
        "outer", ".gitmodules", "mods", "mods/inner", "mods/inner/inner", "mods/inner/.gitmodules", "mods/inner/leaf",
        "mods/inner/leaf/leaf",
    }  # fmt: skip
    assert not list(Path(tree.layers[0]).rglob(".git"))
    without = fetch(checkouts, server.url("outer") + "?submodules=false")
    assert "mods/inner/inner" not in names(without) and without.identity != tree.identity


def test_a_submodule_cannot_be_a_folder_of_this_host(server: Server, checkouts: Checkouts, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    git(secret, "init", "--quiet")
    server.commit(secret, {"key": "private"})
    evil = server.repository("evil-submodule", {"a": "1"})
    git(evil, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(secret), "s")
    server.commit(evil, {})
    with pytest.raises(KnarrError, match=r"failed to update submodules for git://.*: git stderr:\n(.|\n)*transport 'file' not allowed"):
        fetch(checkouts, server.url("evil-submodule"))


def test_a_repository_runs_nothing(server: Server, checkouts: Checkouts, tmp_path: Path) -> None:
    """Filters, hooks and commands of submodules that a repository names are not run."""
    marker = tmp_path / "ran"
    path = server.repository("evil", {".gitattributes": "* filter=evil\n", "a": "1"})
    (path / "hooks").mkdir()
    (path / "hooks/post-checkout").write_text(f"#!/bin/sh\ntouch {marker}\n")
    os.chmod(path / "hooks/post-checkout", 0o755)
    (path / ".gitmodules").write_text(f'[submodule "s"]\n\tpath = s\n\turl = ../plain2\n\tupdate = !touch {marker}\n')
    plain = server.repository("plain2", {"x": "1"})
    commit = git(plain, "rev-parse", "HEAD").strip()
    git(path, "update-index", "--add", "--cacheinfo", f"160000,{commit},s")
    git(path, "add", "-A")
    git(path, "update-index", "--add", "--cacheinfo", f"160000,{commit},s")
    git(path, "commit", "--quiet", "-m", "m")
    with contextlib.suppress(KnarrError):
        fetch(checkouts, server.url("evil"))
    assert not marker.exists()


def test_a_subdir_does_not_lead_out(server: Server, checkouts: Checkouts) -> None:
    path = server.repository("outside", {"a": "1"})
    os.symlink("/etc", path / "etc")
    server.commit(path, {})
    with pytest.raises(InvalidParameter, match="failed to open subdir etc"):
        fetch(checkouts, server.url("outside") + "#:etc")
    assert names(fetch(checkouts, server.url("outside") + "#:../../..")) == {"a", "etc"}


def test_a_broken_mirror_is_made_anew(server: Server, checkouts: Checkouts) -> None:
    path = server.repository("broken", {"a": "1"})
    fetch(checkouts, server.url("broken"))
    (mirror,) = Path(checkouts.kept.tree("x")).parents[1].glob("mirror-*")
    (mirror / "tree/HEAD").write_bytes(b"\0\0\0")
    server.commit(path, {"a": "2"})
    assert Path(fetch(checkouts, server.url("broken")).layers[0], "a").read_text() == "2"


def test_no_server_and_no_git(server: Server, checkouts: Checkouts, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        KnarrError, match=r"error fetching default branch for repository git://127.0.0.1:1/x: git stderr:\n.*unable to connect"
    ):
        fetch(checkouts, "git://127.0.0.1:1/x")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(KnarrError, match="failed to find git binary"):
        fetch(checkouts, server.url("plain"))


def test_cancelling_ends_git_and_its_helpers(tmp_path: Path) -> None:
    """A server that accepts and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"git://127.0.0.1:{silent.getsockname()[1]}/x"

        async def main() -> None:
            with trio.move_on_after(0.3) as scope:
                await gitrun.Git(url).run("fetching", str(tmp_path), "ls-remote", url)
            assert scope.cancelled_caught

        trio.run(main)
        wait(lambda: not running(url), told=lambda: f"left: {running(url)}")


def http_backend(folder: Path, authorization: str) -> Callable[[Request], Reply]:
    """Git's own CGI program behind HTTP, for who has the right header."""

    def answer(request: Request) -> Reply:
        if request.headers.get("authorization") != authorization:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="x"'})
        path, _, query = request.target.partition("?")
        environment = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(folder), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path,
            "QUERY_STRING": query,            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": request.headers.get("content-type", ""), "HOME": "/dev/null",
            "CONTENT_LENGTH": str(len(request.body)), "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": request.headers.get("git-protocol", ""), "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }  # fmt: skip
        out = subprocess.run(["git", "http-backend"], env=environment, input=request.body, capture_output=True).stdout
        head, _, body = out.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        return Reply(int(headers.pop("Status", "200").split()[0]), headers, body)

    return answer


def test_a_private_repository_over_http(server: Server, checkouts: Checkouts) -> None:
    server.repository("private", {"a": "1"})
    token = "basic eC1hY2Nlc3MtdG9rZW46aHVzaA=="
    with Scripted(http_backend(server.folder, token)) as web:
        with pytest.raises(KnarrError, match=r"terminal prompts disabled|could not read Username|Authentication failed") as error:
            fetch(checkouts, f"{web.url}/private/.git")
        tree = fetch(checkouts, f"{web.url}/private/.git", secrets={"GIT_AUTH_TOKEN": b"hush"})
        assert names(tree) == {"a"}
        with pytest.raises(KnarrError) as error:
            fetch(checkouts, f"{web.url}/none/.git", secrets={"GIT_AUTH_TOKEN": b"hush"})
        assert "hush" not in str(error.value) and "aHVzaA" not in str(error.value)


def test_what_is_kept_can_be_listed_and_removed(server: Server, checkouts: Checkouts) -> None:
    server.repository("listed", {"a": "1"})
    fetch(checkouts, server.url("listed"))

    async def main(act: Callable[[], object]) -> None:
        records = checkouts.kept.records()
        assert {record.type for record in records} == {"source.git.checkout", "internal"}
        checkouts.kept.use(records[0].id)
        assert await checkouts.kept.remove({record.id for record in records}) == records[1].size
        checkouts.kept.release(records[0].id)
        assert [record.id for record in checkouts.kept.records()] == [records[0].id]
        os.mkdir(Path(checkouts.kept.tree("x")).parents[1] / "tmp-crash-1")
        await checkouts.kept.sweep()
        assert os.listdir(Path(checkouts.kept.tree("x")).parents[1]) == [records[0].id]

    trio.run(main, lambda: None)
