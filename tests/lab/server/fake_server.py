"""``fake_server.py PORT HOW sglang::scheduler``: a server that is healthy, and answers /generate as HOW says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ASKED: list[str] = []
BUSY: list[str] = []
BEGUN = b'data: {"output_ids": [1], "meta_info": {}}\n'


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        if HOW == "cached":
            self.answer_as_a_cache()
            return
        if self.path == "/flush_cache":
            BUSY.append(self.path)
            self.send_response(400 if len(BUSY) < 3 else 200)
            self.end_headers()
            return
        if HOW == "refuse":
            self.send_error(400, "too long")
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write({"hang": b"", "answer": BEGUN + b"data: [DONE]\n"}.get(HOW, BEGUN))
        if HOW == "die":
            os.write(1, b"RuntimeError: the scheduler is gone\n")
            os._exit(3)
        if HOW == "hang":
            time.sleep(1000)

    def answer_as_a_cache(self) -> None:
        """Print what is asked; answer every second time from storage; end after two prompts."""
        body = self.rfile.read(int(self.headers["content-length"] or 0)).decode()
        os.write(1, f"{body or self.path}\n".encode())
        ASKED.append(body)
        found = b'{"storage":640}' if len(ASKED) % 4 == 3 else b"null"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"meta_info":{"cached_tokens_details":' + found + b',"dp_rank":null}}')
        if len(ASKED) == 8:
            os._exit(3)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    HOW = sys.argv[2]
    child = subprocess.Popen(["sleep", "1000"])  # which the server does not end
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
