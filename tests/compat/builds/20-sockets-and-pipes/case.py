import os
import socket
from pathlib import Path


def prepare(folder: Path) -> None:
    made = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    os.chdir(folder / "context/run")
    try:
        made.bind("daemon.sock")
    finally:
        os.chdir(before)
        made.close()
