"""`knarr registry serve`: have the daemon serve its registry, and show every request until told to stop.

The daemon's listener lives as long as this command's connection. When the daemon is restarted, the command asks again until it answers.
"""

import sys
import time
from _socket import SHUT_WR

from cli.client import Client, Connection, DaemonError, Failure, Unreachable
from cli.flags import Command, parse
from cli.main import write_error
from cli.progress import printable
from cli.streams import output

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

SERVE = Command("registry serve", "[OPTIONS]", {
    "addr": "string", "tls-cert": "string", "tls-key": "string", "htpasswd": "string", "realm": "string", "anonymous-pull": "bool",
    "token-realm": "string", "token-service": "string", "token-issuer": "string", "token-cert": "string", "read-only": "bool",
    "no-delete": "bool", "proxy": "list", "proxy-username": "string", "proxy-password-stdin": "bool", "name": "list", "quiet": "bool",
}, {"q": "quiet"}, 0, 0)  # fmt: skip
_FILES = ("tls-cert", "tls-key", "htpasswd", "token-cert")
PAUSE = 0.5  # seconds between two attempts to reach a daemon that went away


def serve(client: Client, name: str, argv: "list[str]") -> int:
    given, _ = parse(SERVE, argv)
    quiet = given.pop("quiet", False)
    settings = _settings(given)
    _signals()
    known = False  # the daemon has accepted the settings once, so that a refusal is one that passes
    told = ""
    while True:
        try:
            if _serve(client, settings, quiet, known):
                return 0
            known, told = True, "the daemon closed the connection"
            write_error(f"{told}; waiting for it")
        except (Unreachable, DaemonError) as error:
            if not known:
                raise
            if error.text != told:
                told = error.text
                write_error(told)
        except OSError as error:
            if not known:
                raise Failure(f"Cannot serve the registry: {error.strerror or error}") from None
        except KeyboardInterrupt:
            return 0
        try:
            time.sleep(PAUSE)
        except KeyboardInterrupt:
            return 0


def _settings(given: "dict[str, Any]") -> "dict[str, Any]":
    """The flags as the daemon wants them: absolute paths, the password in the place of its flag. Raises Failure."""
    from os.path import abspath

    if given.pop("proxy-password-stdin", False):
        given["proxy-password"] = sys.stdin.readline().rstrip("\r\n")
        if not given["proxy-password"]:
            raise Failure("--proxy-password-stdin: there is no password on standard input")
    for flag in _FILES:
        if flag in given:
            given[flag] = abspath(given[flag])
    return given


def _signals() -> None:
    """SIGTERM ends the command like Ctrl-C."""
    from signal import SIGINT, SIGTERM, default_int_handler, signal

    for number in (SIGINT, SIGTERM):
        signal(number, default_int_handler)


def _serve(client: Client, settings: "dict[str, Any]", quiet: bool, again: bool) -> bool:
    """One connection to the daemon; True when we were told to stop, False when the daemon went away."""
    connection = client.connect()
    try:
        values = client.open("POST", "/registry/serve", settings, connection).values()
        stopping = False
        while True:
            try:
                for value in values:
                    _show(value, quiet)
                return stopping
            except KeyboardInterrupt:
                if stopping:
                    return True
                stopping = True
                write_error("stopping; requests under way are answered first")
                connection.sock.shutdown(SHUT_WR)
                values = _rest(connection)
    except Failure as failure:
        if "closed the connection" in failure.text or "unexpected EOF" in failure.text:
            return False
        raise
    finally:
        connection.close()


def _rest(connection: Connection) -> "Any":
    """Nothing more is shown, only the end waited for: what was read of a line when the signal came is lost."""
    while connection.recv():
        pass
    return
    yield


def _show(value: "dict[str, Any]", quiet: bool) -> None:
    if "Listening" in value:
        output(f"Registry listens on {value['Listening']}\n")
        if value["Warning"]:
            write_error(f"WARNING: {value['Warning']}")
    elif "Lost" in value:
        output(f"({value['Lost']} requests not shown)\n")
    elif not quiet:
        moment = time.strftime("%H:%M:%S", time.localtime(value["Time"]))
        who = " ".join(filter(None, (value["Peer"], value["User"])))
        text = (
            f"{moment} {who or '-'} {value['Method']} {value['Target']} {value['Status'] or 'gone'} "
            f"{value['Bytes']} {value['Seconds'] * 1000:.1f} ms"
        )
        output(printable(text).replace("\n", " ") + "\n")  # a token says of itself what its user is called
