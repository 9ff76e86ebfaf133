"""The page of `vitrea select --interactive`: a small server for one person on this machine.

It listens on the loopback address only. Other people on the machine lack the random token in the address; other web
pages that the person has open cannot read it, cannot post to it (Origin), and cannot reach it under a name of their own
that they let point here (Host: DNS rebinding). Nothing else than the page and its two answers exists.
"""

from __future__ import annotations

import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np

LOOPBACK = "127.0.0.1"
OWN_NAMES = {"127.0.0.1", "localhost"}   # any port: the page may be reached through an ssh tunnel
LONGEST = 1_000_000                      # bytes of a message: the numbers of a hundred thousand classes
TOKEN_BYTES = 32
HEADERS = {
    "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store", "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Server(ThreadingHTTPServer):
    """Serves `page` (HTML, with the policy of its content) until the person is done or `stop` is called.

    save(kept bool[K]) -> dict writes the selection and tells what was written; n_classes K.
    """

    daemon_threads = True

    def __init__(self, page, policy, save, n_classes, port=0):
        super().__init__((LOOPBACK, port), _Handler)
        self.page, self.policy, self.save, self.n_classes = page.encode(), policy, save, n_classes
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self.saving = threading.Lock()

    @property
    def address(self):
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"

    def stop(self):
        threading.Thread(target=self.shutdown).start()


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version, protocol_version, timeout = "Vitrea", "", "HTTP/1.1", 60

    def do_GET(self):
        if self._refused() or self._place() != "":
            return
        self._answer(200, self.server.page, "text/html; charset=utf-8")

    def do_POST(self):
        if self._refused(posted=True):
            return
        place = self._place("save", "quit")
        if place == "save":
            self._save()
        elif place == "quit":
            self._answer_json(200, {})
            self.server.stop()

    def _save(self):
        kept = self._kept()
        if kept is None:
            return
        try:
            with self.server.saving:
                told = self.server.save(kept)
        except Exception as error:   # the person who looks at the page is told, not the terminal behind it
            self._answer_json(500, {"error": str(error)})
            return
        self._answer_json(200, told)

    def _kept(self):
        """bool[K] of the message, None if it was refused."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LONGEST:
            self._refuse(413, "the message is too long")
            return None
        try:
            numbers = json.loads(self.rfile.read(int(length)))["kept"]
            kept = np.zeros(self.server.n_classes + 1, dtype=bool)
            if not all(type(k) is int and 1 <= k <= self.server.n_classes for k in numbers):
                raise ValueError("no class of this run")
        except (ValueError, KeyError, TypeError):
            self._refuse(400, "expected the numbers of classes")
            return None
        kept[numbers] = True
        return kept[1:]

    def _refused(self, posted=False):
        """Whether the request is none of this page's; if so, it is answered."""
        host = urlsplit("//" + self.headers.get("Host", "")).hostname
        origin = self.headers.get("Origin")
        if host not in OWN_NAMES:
            return self._refuse(421, "this page is reached as 127.0.0.1 or localhost")
        if posted and (origin is None or urlsplit(origin).netloc != self.headers["Host"]):
            return self._refuse(403, "only this page may write")
        if posted and self.headers.get("Content-Type", "").partition(";")[0] != "application/json":
            return self._refuse(415, "expected JSON")
        token = self.path.split("/")[1] if self.path.startswith("/") else ""
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            return self._refuse(404, "the address lacks its token; copy all of it from the terminal")
        return False

    def _place(self, *known):
        """What follows the token; answered with 404, and None, if it is neither known nor the page itself."""
        place = self.path.partition("?")[0].split("/", 2)[2:]
        if not place or place[0] not in ("", *known):
            self._refuse(404, "no such page")
            return None
        return place[0]

    def _refuse(self, code, words):
        self.close_connection = True
        self._answer(code, f"{words}\n".encode(), "text/plain; charset=utf-8")
        return True

    def _answer_json(self, code, told):
        self._answer(code, json.dumps(told).encode(), "application/json")

    def _answer(self, code, content, kind):
        self.send_response(code)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Nothing: the terminal tells what was saved, and addresses with their token belong into no log."""
