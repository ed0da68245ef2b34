"""A worker without a model: says on the status pipe what its script says, and serves what the hive asks of a worker.

SCRIPT in the environment: serve (default), crash, hang (in loading), fail (with an error), stubborn (ignores SIGTERM),
broken (writes no status that could be read). BUSY=1: reports one slot taken.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


class Worker:
    def __init__(self, status_fd: int, config: dict[str, Any]) -> None:
        self.status_fd = status_fd
        self.config = config
        self.slots = config["slots"]

    def say(self, state: str, *, progress: float = 1.0, error: Any = None) -> None:
        taken = 1 if state == "busy" else 0
        status = {
            "id": self.config["id"], "model": self.config["model"], "state": state, "progress": progress,
            "ctx": self.config["ctx"], "slots": self.slots, "slots_free": self.slots - taken, "queued": 0,
            "idle_s": 0.0 if state == "idle" else None, "error": error,
        }  # fmt: skip
        os.write(self.status_fd, json.dumps(status).encode() + b"\n")

    def serve(self) -> None:
        state = "busy" if os.environ.get("BUSY") == "1" else "idle"
        worker = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def do_POST(self) -> None:
                self.send_response(202)
                self.end_headers()
                threading.Thread(target=server.shutdown, daemon=True).start()

            def address_string(self) -> str:
                return "hive"

            def log_message(self, format: str, *args: Any) -> None:
                return

        class Server(HTTPServer):
            address_family = socket.AF_UNIX

            def server_bind(self) -> None:
                self.socket.bind(self.server_address)

        server = Server(self.config["socket"], Handler)
        worker.say(state)
        if state == "busy":
            signal.signal(signal.SIGUSR1, lambda *_: worker.say("idle"))
        server.serve_forever(poll_interval=0.05)
        worker.say("stopping")


def main() -> int:
    worker = Worker(int(sys.argv[1].removeprefix("--status-fd=")), json.load(sys.stdin))
    script = os.environ.get("SCRIPT", "serve")
    sys.stderr.write(f"script {script}\n")
    sys.stderr.flush()
    if script == "broken":
        os.write(worker.status_fd, b"not json\n")
    if script == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker.say("loading", progress=0.25)
    if script == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if script in ("hang", "stubborn"):
        time.sleep(600)
    if script == "fail":
        error = {"code": "MODEL_INVALID", "message": "no model", "details": {}, "hint": ""}
        worker.say("failed", error=error)
        return 1
    worker.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
