"""`pipe SOCKET [--ready NONCE]`: stdin and stdout to a unix socket, for nodes whose sshd forbids forwarding.

The end of either direction is passed on as a half-close, the other direction runs on until its own end.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.system import unix_socket

CHUNK = 256 * 1024


def main(argv: list[str]) -> int:
    """Returns 0 when the socket's side has ended. Raises RemoteError WORKER_GONE when nobody listens at SOCKET."""
    parser = argparse.ArgumentParser(prog="rbee_remote pipe")
    parser.add_argument("socket")
    parser.add_argument("--ready", metavar="NONCE", default="", help="a line to write once connected")
    options = parser.parse_args(argv)
    try:
        connection = unix_socket.connect(options.socket)
    except OSError as error:
        message = f"cannot connect to {options.socket}: {error.strerror or error}"
        raise RemoteError(ErrorCode.WORKER_GONE, message) from error
    with connection:
        if options.ready:
            _write_all(sys.stdout.fileno(), options.ready.encode() + b"\n")
        # A daemon: when the socket has ended, nobody waits for stdin, which may stay open for ever.
        threading.Thread(target=_stdin_to_socket, args=(connection,), daemon=True).start()
        _socket_to_stdout(connection)
    return 0


def _stdin_to_socket(connection: socket.socket) -> None:
    try:
        while chunk := os.read(sys.stdin.fileno(), CHUNK):
            connection.sendall(chunk)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        # The socket's side has gone; its reader sees that too and ends the process.
        return


def _socket_to_stdout(connection: socket.socket) -> None:
    try:
        while chunk := connection.recv(CHUNK):
            _write_all(sys.stdout.fileno(), chunk)
    except (BrokenPipeError, ConnectionResetError):
        # One side hung up in the middle: there is nobody left to tell.
        return


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
