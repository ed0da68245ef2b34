"""A worker without a model: says on the status pipe what its script says, and serves what the hive asks of a worker.

SCRIPT in the environment: serve (default), crash, hang (in loading), fail (with an error), stubborn (ignores SIGTERM),
broken (writes no status that could be read), deaf (its socket takes connections and never answers), ending (serves,
and says that it takes nobody in any more), deafened (answers nothing any more once told to stop), confused (says that
it is loading when it serves). BUSY=1: reports one slot taken. IN_USE: why it is not to be ended. SERVED: how many
requests it tells of. Leases that it is asked for are told as they were given.
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
        self.leases = [{"keeper": config["keeper"], "left_s": config["keep_alive_s"]}]

    def say(self, state: str, *, progress: float = 1.0, error: Any = None, served: Any = ()) -> None:
        taken = 1 if state == "busy" else 0
        status = {
            "id": self.config["id"], "model": self.config["model"], "state": state, "progress": progress,
            "ctx": self.config["ctx"], "slots": self.slots, "slots_free": self.slots - taken, "queued": 0,
            "idle_s": 0.0 if state == "idle" else None, "error": error,
            "leases": self.leases, "served": served,
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
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/v1/admin/lease":
                    self.lease(body)
                elif body["only_idle_s"] is not None and "IN_USE" in os.environ:
                    self.answer(503, "IN_USE", os.environ["IN_USE"])
                else:
                    self.answer(202)
                    if os.environ.get("SCRIPT") == "deafened":
                        self.wfile.flush()
                        self.connection.shutdown(socket.SHUT_RDWR)
                        time.sleep(600)
                    threading.Thread(target=server.shutdown, daemon=True).start()

            def lease(self, body: Any) -> None:
                if os.environ.get("SCRIPT") == "ending":
                    self.answer(410, "WORKER_GONE", "it is ending")
                    threading.Thread(target=server.shutdown, daemon=True).start()
                    return
                worker.leases.append({"keeper": body["keeper"], "left_s": body["keep_alive_s"]})
                worker.say(state)
                self.answer(202)

            def answer(self, status: int, code: str = "", message: str = "") -> None:
                self.send_response(status)
                self.end_headers()
                if code:
                    self.wfile.write(json.dumps({"error": {"code": code, "message": message}}).encode())

            def address_string(self) -> str:
                return "hive"

            def log_message(self, format: str, *args: Any) -> None:
                return

        class Server(HTTPServer):
            address_family = socket.AF_UNIX
            request_queue_size = 128

            def server_bind(self) -> None:
                self.socket.bind(self.server_address)

        server = Server(self.config["socket"], Handler)
        worker.say("loading", progress=0.25)
        count = int(os.environ.get("SERVED", "0"))
        served = {"keeper": "k", "who": "me@here", "prompt_tokens": 1, "completion_tokens": 2, "finish": "stop"}
        worker.say(state, served=[{"request_id": f"{number:032x}", **served} for number in range(count)])
        if os.environ.get("SCRIPT") == "deaf":
            time.sleep(600)
        if os.environ.get("SCRIPT") == "confused":
            worker.say("loading", progress=0.5)
            worker.say("ready")
        if state == "busy":
            signal.signal(signal.SIGUSR1, lambda *_: worker.say("idle"))
        server.serve_forever(poll_interval=0.05)
        worker.say("stopping")


def main() -> int:
    worker = Worker(int(sys.argv[-1].removeprefix("--status-fd=")), json.load(sys.stdin))
    script = os.environ.get("SCRIPT", "serve")
    sys.stderr.write(f"script {script}\n")
    sys.stderr.flush()
    if script == "broken":
        os.write(worker.status_fd, b"not json\n")
    if script == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if script in ("crash", "hang", "stubborn", "fail"):
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
