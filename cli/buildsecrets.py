"""What a build is given beside its files: secrets, ssh agents, logins at registries, and the proxies of `config.json`.

Secrets and logins are sent with the request; an agent's socket stays here, and the bytes of its connections are carried. Nothing here is
ever printed. Words are buildx's.
"""

import posix
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket
from binascii import b2a_base64

from cli.buildflags import Plan, csv, refuse
from cli.client import Client, Failure, getenv

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

MOST_SECRET = 500 * 1024  # bytes, BuildKit's limit
_SOCKET = 0o140000
_HUB_KEYS = ("https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io")
_PROXIES = {"httpProxy": "HTTP_PROXY", "httpsProxy": "HTTPS_PROXY", "ftpProxy": "FTP_PROXY", "noProxy": "NO_PROXY",
    "allProxy": "ALL_PROXY"}


def source_of(text: str) -> "tuple[str, tuple[str, str]]":
    """`--secret`: its identifier, and ("file", path) or ("env", name)."""
    identity = source = variable = kind = ""
    for field in csv(text):
        key, equals, value = field.partition("=")
        key = key.lower()
        if not equals:
            raise refuse(f"invalid field '{field}' must be a key=value pair")
        if key == "type":
            if value not in ("file", "env"):
                raise refuse(f'unsupported secret type "{value}"')
            kind = value
        elif key == "id":
            identity = value
        elif key in ("source", "src"):
            source = value
        elif key == "env":
            variable = value
        else:
            raise refuse(f"unexpected key '{key}' in '{field}'")
    if not identity:
        raise refuse("secret missing ID")
    if kind == "env" and not variable:
        variable, source = source, ""
    if not source and not variable:
        if identity.encode() in posix.environ:
            variable = identity
        else:
            source = identity
    return identity, ("file", source) if source else ("env", variable)


def secrets(plan: Plan) -> "dict[str, str]":
    """Content of every secret there is, in base64; a variable that is not set gives none. Raises Failure."""
    found = {}
    for identity, (kind, source) in plan.secrets.items():
        if kind == "env":
            value = posix.environ.get(source.encode("utf-8", "surrogateescape"))
            if value is None:
                continue
        else:
            value = _file(source)
        if len(value) > MOST_SECRET:
            raise refuse(f"secret {identity} too big. max size 500KB")
        found[identity] = b2a_base64(value, newline=False).decode()
    return found


def _file(path: str) -> bytes:
    from cli.configfile import read_file

    try:
        info = posix.stat(path)
        if (info.st_mode & 0o170000) == 0o040000:
            raise refuse(f"secret source {path} is a directory")
        value = read_file(path, 2 * MOST_SECRET)  # more is refused by its size
    except OSError as error:
        raise refuse(f"failed to stat {path}: stat {path}: {(error.strerror or '').lower()}") from None
    except Failure as failure:
        if failure.text.startswith("read "):
            raise refuse(f"secret {path} too big. max size 500KB") from None
        raise
    return value or b""


class Agents:
    """The ssh agents that a build may use: sockets by identifier. Those started here for keys end with `close`, and with this process."""

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}
        self.started: list[tuple[int, int, int, str]] = []  # the agent, its parent, what keeps that alive, the socket

    def close(self) -> None:
        """End the agents that were started here and remove their sockets."""
        started, self.started = self.started, []
        for agent, parent, feed, path in started:
            posix.close(feed)
            try:
                posix.kill(agent, 15)
                posix.waitpid(parent, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # it ended before
            for remove, target in ((posix.unlink, path), (posix.rmdir, path.rpartition("/")[0])):
                try:
                    remove(target)
                except FileNotFoundError:
                    pass  # the agent removes its socket itself

    def connect(self, identity: str) -> socket:
        """A connection to an agent. Raises OSError, and KeyError for one that was not given."""
        sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        try:
            sock.connect(self.paths[identity])
        except BaseException:
            sock.close()
            raise
        return sock


def agents(plan: Plan) -> Agents:
    """The sockets that `--ssh` names. Key files get an agent of their own. Raises Failure."""
    found = Agents()
    try:
        for identity, paths in plan.ssh.items():
            found.paths[identity] = _agent(found, paths)
    except BaseException:
        found.close()
        raise
    return found


def _agent(found: Agents, paths: "list[str]") -> str:
    if not paths:
        path = getenv("SSH_AUTH_SOCK")
        if not path:
            raise refuse("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")
        paths = [path]
    kinds = []
    for path in paths:
        try:
            kinds.append(posix.stat(path).st_mode & 0o170000)
        except OSError as error:
            raise refuse(f"stat {path}: {(error.strerror or '').lower()}") from None
    if _SOCKET in kinds:
        if len(paths) > 1:
            raise refuse("only single socket allowed")
        return paths[0]
    return _start_agent(found, paths)


def _start_agent(found: Agents, keys: "list[str]") -> str:
    """An agent of OpenSSH's with these keys, as long as the build lasts. Raises Failure.

    An agent that is given a program ends with that program (ssh-agent(1)): here one that reads a pipe of ours, so that it also ends when
    this process is killed.
    """
    from cli.processes import find, spawn
    from cli.sockets import make_folder

    agent, add = find("ssh-agent"), find("ssh-add")
    if not agent or not add:
        raise refuse("--ssh with key files needs ssh-agent and ssh-add (OpenSSH's client) on PATH; or load the keys into an agent "
            "and give its socket")
    folder = make_folder("ssh", "agent")
    path = folder + "/agent"
    stdin, feed = posix.pipe2(posix.O_CLOEXEC)
    take, stdout = posix.pipe2(posix.O_CLOEXEC)
    try:
        parent = spawn(agent, ["-a", path, "/bin/sh", "-c", "echo $SSH_AGENT_PID; exec cat > /dev/null"], stdin, stdout)
    finally:
        posix.close(stdin)
        posix.close(stdout)
    told = b""
    while not told.endswith(b"\n") and (piece := posix.read(take, 100)):
        told += piece
    posix.close(take)
    if not told.strip().isdigit():
        posix.close(feed)
        posix.waitpid(parent, 0)
        posix.rmdir(folder)
        raise refuse("ssh-agent did not start (see above)")
    found.started.append((int(told), parent, feed, path))
    for key in keys:
        _add_key(add, key, path)
    return path


def _add_key(program: str, key: str, agent: str) -> None:
    """Load one key; ssh-add asks for a passphrase on the terminal. Raises Failure."""
    before = posix.environ.get(b"SSH_AUTH_SOCK")
    posix.environ[b"SSH_AUTH_SOCK"] = agent.encode()
    try:
        process = posix.posix_spawn(program, [program, "-q", key], posix.environ)
    finally:
        if before is None:
            del posix.environ[b"SSH_AUTH_SOCK"]
        else:
            posix.environ[b"SSH_AUTH_SOCK"] = before
    if posix.waitpid(process, 0)[1]:
        raise refuse(f"failed to load the key {key} into an ssh agent (see above)")


def configured(client: Client, options: "dict[str, Any]", dockerfile: "bytes | None") -> "dict[str, dict[str, Any]]":
    """The logins that a build may need, by server, and the proxies into its build arguments, from `config.json`.

    A credential helper is run for the servers alone that the Dockerfile or the options name (for every server it keeps a login of, where
    the Dockerfile is not known here): helpers take time and some of them ask the user.
    """
    from cli.configfile import ConfigFile, folder, read_file

    data = read_file(folder(client.folder) + "/config.json")
    if data is None or not any(word in data for word in (b'"auth', b'"cred', b'"proxies"')):
        return {}
    config = ConfigFile(client.folder)
    if proxies := config.mapping("proxies"):
        _proxies(client, proxies, options)
    return _logins(config, options, dockerfile)


def _proxies(client: Client, proxies: "dict[str, Any]", options: "dict[str, Any]") -> None:
    chosen = proxies.get(client.host.url) or proxies.get("default")
    if not isinstance(chosen, dict):
        return
    for member, name in _PROXIES.items():
        value = chosen.get(member)
        if isinstance(value, str) and value:
            arguments = options.setdefault("buildArgs", {})
            arguments.setdefault(name, value)
            arguments.setdefault(name.lower(), value)


def _logins(config: "Any", options: "dict[str, Any]", dockerfile: "bytes | None") -> "dict[str, dict[str, Any]]":
    from cli.credentials import find

    auths = config.mapping("auths")
    helpers = config.mapping("credHelpers")
    store = config.data.get("credsStore")
    found = {}
    for server in dict.fromkeys([*auths, *helpers]):
        if (store or helpers.get(server)) and not _named(server, options, dockerfile):
            continue
        try:
            login = find(config, server)
        except Failure as failure:
            from cli.streams import write_all

            write_all(2, f"WARNING: {failure.text}\n".encode())
            continue
        if login:
            found[server] = login
    return found


def _named(server: str, options: "dict[str, Any]", dockerfile: "bytes | None") -> bool:
    """Whether a build can have to do with a registry. The Hub is in every name without a registry; a name may be put together of
    variables, so that then every server may be meant."""
    if dockerfile is None or server in _HUB_KEYS:
        return True
    from cli.codec import dumps
    from cli.credentials import hostname

    host = hostname(server).encode()
    if host in dockerfile or host.decode() in dumps(options):
        return True
    for line in dockerfile.split(b"\n"):
        words = line.split()
        if words and words[0].upper() == b"FROM" and b"$" in line:
            return True
    return False
