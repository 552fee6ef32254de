"""`knarr login` and `knarr logout`. The daemon asks the registry whether a login is good; only then is it kept (`cli/credentials.py`)."""

import posix

from cli.client import Client, DaemonError, Failure
from cli.codec import loads
from cli.configfile import ConfigFile
from cli.credentials import HUB, erase, find, hostname, server_of, store
from cli.flags import PROGRAM, Command, parse
from cli.streams import output, write_all
from cli.terminal import is_terminal

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

LOGIN = Command("login", "[OPTIONS] [SERVER]", {"password": "string", "password-stdin": "bool", "username": "string"},
                {"p": "password", "u": "username"}, 0, 1)
LOGOUT = Command("logout", "[SERVER]", {}, {}, 0, 1)
MOST = 1 << 16  # bytes of a password; identity tokens have some thousand

_UNENCRYPTED = """
WARNING! Your credentials are stored unencrypted in '{}'.
Configure a credential helper to remove this warning. See
https://docs.docker.com/go/credential-store/

"""


def _error(text: str) -> None:
    write_all(2, text.encode("utf-8", "surrogateescape"))


def _stdin() -> str:
    data = b""
    while len(data) <= MOST and (piece := posix.read(0, MOST)):
        data += piece
    if len(data) > MOST:
        raise Failure(f"read the password from stdin: more than {MOST} bytes")
    return data.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")


def _line() -> str:
    """One line typed at the terminal, without its end."""
    data = b""
    while (byte := posix.read(0, 1)) not in (b"", b"\n"):
        data += byte
    return data.decode("utf-8", "surrogateescape").strip()


def _secret(prompt: str) -> str:
    """A line typed without echo, which ends before the prompt asks for it; the terminal's mode comes back in any case."""
    import termios

    saved = termios.tcgetattr(0)
    mode = termios.tcgetattr(0)
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(0, termios.TCSANOW, mode)
    try:
        output(prompt)
        return _line()
    finally:
        termios.tcsetattr(0, termios.TCSANOW, saved)
        output("\n")


def _flags(given: "dict[str, Any]") -> None:
    if given.get("password-stdin"):
        if "password" in given:
            raise Failure("conflicting options: cannot specify both --password and --password-stdin")
        if "username" not in given:
            raise Failure("the --password-stdin option requires --username to be set")
    for flag in ("username", "password"):
        if given.get(flag, "x") == "":
            raise Failure(f"{flag} is empty")
    if "password" in given:
        _error("WARNING! Using --password via the CLI is insecure. Use --password-stdin.\n")
    if given.get("password-stdin"):
        given["password"] = _stdin()


def _prompt(server: str, user: str, password: str) -> "tuple[str, str]":
    """Ask for what is missing. Raises Failure."""
    if not is_terminal(0):
        raise Failure("Error: Cannot perform an interactive login from a non TTY device")
    if not user:
        output("Username: ")
        user = _line()
        if not user:
            raise Failure("Error: Non-null Username Required")
    if not password:
        if server == HUB:
            output("\nInfo → A Personal Access Token (PAT) can be used instead.\n"
                "         To create a PAT, visit https://app.docker.com/settings\n\n\n")
        password = _secret("Password: ")
        if not password:
            raise Failure("Error: Password Required")
    return user, password


def _stored(client: Client, config: ConfigFile, server: str) -> "tuple[dict[str, Any], dict[str, Any]] | None":
    """Try the login that is kept already: it and the daemon's answer, None when there is none or it is refused."""
    try:
        kept = find(config, server)
    except Failure as failure:
        _error(f"WARNING: {failure.text}\n")
        return None
    if not kept.get("username") or not kept.get("password"):
        return None
    login = {name: kept[name] for name in ("username", "password")} | {"serveraddress": server}
    _error(f"Authenticating with existing credentials... [Username: {login['username']}]\n\n"
        f" Info -> To login with a different account, run '{PROGRAM} logout' followed by '{PROGRAM} login'\n\n\n")
    try:
        return login, loads(client.post("/auth", login))
    except DaemonError as error:
        if error.status != 401:
            raise
        _error("Stored credentials invalid or expired\n")
        return None


def login(client: Client, name: str, argv: "list[str]") -> int:
    given, arguments = parse(LOGIN, argv)
    _flags(given)
    server = server_of(arguments[0] if arguments else "")
    config = ConfigFile(client.folder)
    user, password = given.get("username", ""), given.get("password", "")
    tried = None if user or password else _stored(client, config, server)
    if tried is None:
        if not user or not password:
            user, password = _prompt(server, user, password)
        wanted = {"username": user, "password": password, "serveraddress": server}
        tried = wanted, loads(client.post("/auth", wanted))
    details, answer = tried
    if answer.get("IdentityToken"):
        details = details | {"password": "", "identitytoken": answer["IdentityToken"]}
    try:
        unencrypted = store(config, details)
    except Failure as failure:
        raise Failure(f"Error saving credentials: {failure.text}") from None
    if unencrypted:
        _error(_UNENCRYPTED.format(config.path))
    if answer.get("Status"):
        output(answer["Status"] + "\n")
    return 0


def logout(client: Client, name: str, argv: "list[str]") -> int:
    _, arguments = parse(LOGOUT, argv)
    server = server_of(arguments[0] if arguments else "")
    output(f"Removing login credentials for {hostname(arguments[0]) if arguments and arguments[0] != HUB else HUB}\n")
    try:
        erase(ConfigFile(client.folder), server)
    except Failure as failure:
        raise Failure(f"WARNING: could not erase credentials:\n{server}: {failure.text}") from None
    return 0
