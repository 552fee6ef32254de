"""`knarr system dial-stdio`: standard input and output become a connection to the daemon, for a client that comes over ssh.

Half-closed in each direction on its own, as HTTP over a taken-over connection needs it. Bytes are passed on as they are.
"""

import posix
from select import POLLHUP, POLLIN, POLLOUT, poll

from cli.client import Client
from cli.flags import Command, parse
from cli.streams import BUFFER, write_all

DIAL = Command("system dial-stdio", "", {}, {}, 0, 0)


def dial_stdio(client: Client, name: str, argv: "list[str]") -> int:
    """Until the daemon closes its side; the end of standard input only closes ours."""
    parse(DIAL, argv)
    connection = client.connect()
    sock = connection.sock
    sock.setblocking(False)
    waiting = poll()
    remote = sock.fileno()
    waiting.register(remote, POLLIN)
    waiting.register(0, POLLIN)
    outgoing = memoryview(b"")
    reading = True
    while True:
        for descriptor, events in waiting.poll():
            if descriptor == 0 and events:
                data = posix.read(0, BUFFER)
                outgoing = memoryview(data)
                waiting.unregister(0)  # read on when all of this is sent
                if not data:
                    reading = False
                    connection.close_write()
                    continue
                waiting.modify(remote, POLLIN | POLLOUT)
            elif descriptor == remote:
                if events & POLLOUT and outgoing:
                    try:
                        outgoing = outgoing[sock.send(outgoing):]
                    except BlockingIOError:
                        pass
                    except (BrokenPipeError, ConnectionResetError):
                        outgoing, reading = memoryview(b""), False
                    if not outgoing:
                        waiting.modify(remote, POLLIN)
                        if reading:
                            waiting.register(0, POLLIN)
                if events & (POLLIN | POLLHUP):
                    try:
                        data = sock.recv(BUFFER)
                    except BlockingIOError:
                        continue
                    except ConnectionResetError:
                        return 1
                    if not data:
                        return 0
                    write_all(1, data)
