"""Logins at registries: kept in `config.json` itself or by a credential helper (docker-credential-helpers protocol: `get`, `store`,
`erase` with text on stdin and stdout), and sent to the daemon in X-Registry-Auth (base64url JSON, Docker Engine API "Authentication").

A login is a dict of the API's members: `username password serveraddress identitytoken registrytoken`. Nothing here is ever printed.
"""

from binascii import Error, a2b_base64, b2a_base64

from cli.client import Client, Failure
from cli.codec import dumps, loads
from cli.configfile import ConfigFile

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

    from cli.references import Reference

HUB = "https://index.docker.io/v1/"  # Docker Hub's key in config.json since the first registry protocol
_TOKEN = "<token>"  # the protocol's user name for an identity token


def hostname(server: str) -> str:
    """`https://host:port/v2/` as `host:port`."""
    for scheme in ("http://", "https://"):
        server = server.removeprefix(scheme)
    return server.partition("/")[0]


def server_of(argument: str) -> str:
    """The key under which the login of a server given on the command line is kept."""
    if argument in ("", HUB, "docker.io", "index.docker.io"):
        return HUB
    return hostname(argument)


def _helper(config: ConfigFile, server: str) -> str:
    name = config.mapping("credHelpers").get(server) or config.data.get("credsStore") or ""
    return f"docker-credential-{name}" if isinstance(name, str) and name else ""


def _run(helper: str, action: str, text: str) -> bytes:
    from cli.processes import find, run

    words = {"get": "error getting credentials", "store": "error storing credentials", "erase": "error erasing credentials"}[action]
    path = "" if "/" in helper else find(helper)  # a name, not a way out of PATH
    if not path:
        raise Failure(f'{words} - err: exec: "{helper}": executable file not found in $PATH, out: ``')
    code, out = run(path, [action], text.encode())
    if code:
        shown = out.strip().decode("utf-8", "replace")
        status = f"exit status {code}" if code > 0 else f"signal {-code}"
        raise Failure(f"{words} - err: {status}, out: `{shown}`")
    return out


def find(config: ConfigFile, server: str) -> "dict[str, Any]":
    """The login kept for `server`; empty when there is none. Raises Failure when a helper cannot tell."""
    if helper := _helper(config, server):
        try:
            answer = loads(_run(helper, "get", server))
            user, secret = answer["Username"], answer["Secret"]
        except Failure as failure:
            if "credentials not found" in failure.text:
                return {}
            raise
        except (ValueError, KeyError, TypeError):
            raise Failure(f"error getting credentials - {helper} gave no answer of the credential helper protocol") from None
        kept = {"identitytoken": secret} if user == _TOKEN else {"username": user, "password": secret}
        return kept | {"serveraddress": server}
    auths = config.mapping("auths")
    key = server if server in auths else next((key for key in auths if server != HUB and hostname(key) == server), "")
    return _entry(config, key, auths[key]) if key else {}


def _entry(config: ConfigFile, key: str, entry: object) -> "dict[str, Any]":
    if not isinstance(entry, dict):
        return {}
    found = {member: entry[member] for member in ("username", "password", "identitytoken", "registrytoken")
        if isinstance(entry.get(member), str) and entry[member]}
    if isinstance(entry.get("auth"), str) and entry["auth"]:
        try:
            user, colon, password = a2b_base64(entry["auth"], strict_mode=True).decode().partition(":")
            if not colon:
                raise ValueError("invalid auth configuration file")
        except Error:
            config.warn(f'the entry "{key}" is no base64 data')
            return {}
        except ValueError as error:
            config.warn(f'the entry "{key}": {error}')
            return {}
        found |= {name: value for name, value in (("username", user), ("password", password.rstrip("\0"))) if value}
    return found | {"serveraddress": key} if found else {}


def store(config: ConfigFile, login: "dict[str, Any]") -> bool:
    """Keep a login; True when its secret is now in the file unencrypted. Raises Failure."""
    server = login["serveraddress"]
    token = login.get("identitytoken", "")
    helper = _helper(config, server)
    entry: dict[str, Any] = {}
    if helper:
        secret = {"Username": _TOKEN if token else login["username"], "Secret": token or login["password"]}
        _run(helper, "store", dumps({"ServerURL": server} | secret))
    else:
        entry["auth"] = b2a_base64(f"{login['username']}:{login.get('password', '')}".encode(), newline=False).decode()
        if token:
            entry["identitytoken"] = token
    auths = dict(config.mapping("auths"))
    if auths.get(server) == entry:
        return False
    auths[server] = entry
    config.data["auths"] = dict(sorted(auths.items()))
    config.save()
    return bool(not helper and login.get("password"))


def erase(config: ConfigFile, server: str) -> None:
    """Forget a login, in the file under every spelling of the server's name. Raises Failure."""
    auths = config.mapping("auths")
    kept = {key: entry for key, entry in auths.items() if key != server and (server == HUB or hostname(key) != server)}
    if helper := _helper(config, server):
        _run(helper, "erase", server)
    if len(kept) != len(auths):
        config.data["auths"] = kept
        config.save()


def header(login: "dict[str, Any]") -> str:
    """X-Registry-Auth as a line of a request's head."""
    encoded = b2a_base64(dumps(login).encode(), newline=False).translate(bytes.maketrans(b"+/", b"-_"))
    return f"X-Registry-Auth: {encoded.decode()}\r\n"


def for_reference(client: Client, reference: "Reference") -> str:
    """The header with the login for an image's registry; of a helper that fails, none is sent, as with Docker."""
    from cli.references import HUB_DOMAIN

    try:
        return header(find(ConfigFile(client.folder), HUB if reference.domain == HUB_DOMAIN else reference.domain))
    except Failure as failure:
        from cli.streams import write_all

        write_all(2, f"WARNING: {failure.text}\n".encode())
        return header({})
