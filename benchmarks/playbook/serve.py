"""The smallest server that answers with one token, run by the playbook: `serve.py MODEL PORT`."""

from __future__ import annotations

import ctypes
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import llama_cpp


def load_backends() -> None:
    """A build with loadable backends has none until it is told where they are."""
    package = Path(llama_cpp.__file__).parent
    load = ctypes.CDLL(str(package / "lib" / "libggml.so.0")).ggml_backend_load_all_from_path
    load.argtypes = [ctypes.c_char_p]
    load(str(package.parent / "bin").encode())


load_backends()
MODEL = llama_cpp.Llama(sys.argv[1], n_ctx=4096, verbose=False)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        prompt = self.rfile.read(int(self.headers["Content-Length"])).decode()
        messages = [{"role": "user", "content": prompt}]
        answer = MODEL.create_chat_completion(messages, max_tokens=1)["choices"][0]["message"]["content"]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.encode())


HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
