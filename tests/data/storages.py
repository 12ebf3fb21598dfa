"""Storage that the tests start: a file system of fsspec and a web server, both of which fail and delay as told."""

import random
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

from fsspec.implementations.memory import MemoryFileSystem


class Faults:
    """Whether an answer fails or is late: by a seeded schedule, at most so many failures in a row.

    Args:
        share: of the answers that fail.
        in_a_row: at most.
        delay: seconds before each answer.
        seed: of the schedule.
    """

    def __init__(self, share=0.0, in_a_row=3, delay=0.0, seed=0):
        self.share, self.in_a_row, self.delay = share, in_a_row, delay
        self._random, self._row, self.failed = random.Random(seed), 0, 0

    def due(self):
        time.sleep(self.delay)
        fails = self._row < self.in_a_row and self._random.random() < self.share
        self._row = self._row + 1 if fails else 0
        self.failed += fails
        return fails


class Flaky(MemoryFileSystem):
    """Memory that fails as `faults` says, or always with `error`, and counts what is asked."""

    protocol = "flaky"
    store, pseudo_dirs = {}, [""]
    faults, error, asked = Faults(), None, Counter()

    @classmethod
    def begin(cls, faults=None, error=None):
        cls.faults, cls.error, cls.asked = faults or Faults(), error, Counter()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def _ask(self, what):
        type(self).asked[what] += 1
        if self.error is not None:
            raise self.error
        if self.faults.due():
            raise ConnectionResetError("the connection was reset")

    def cat_file(self, path, start=None, end=None, **options):
        self._ask("cat_file")
        return super().cat_file(path, start, end, **options)

    def info(self, path, **options):
        self._ask("info")
        return super().info(path, **options)

    def ls(self, path, detail=True, **options):
        self._ask("ls")
        return super().ls(path, detail, **options)


class WebServer:
    """Files over HTTP, at ``url``.

    Args:
        files: content by name.
        faults: when it answers 503.
        ranges: whether it sends parts of files.
    """

    def __init__(self, files, faults=None, ranges=True):
        self.files, self.faults, self.ranges, self.asked = files, faults or Faults(), ranges, Counter()
        self.status = 503
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self, with_body):
                with lock:
                    outer.asked[self.command] += 1
                    fails = outer.faults.due()
                name = unquote(self.path.partition("?")[0]).lstrip("/")
                data = outer.files.get(name, outer.index(name))
                if fails or data is None:
                    self.send_response(outer.status if fails else 404)
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                status = 200
                etag = f'"{hash(data)}"'
                part = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if part and outer.ranges:
                    data, status = data[int(part[1]) : int(part[2]) + 1], 206
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", etag)
                self.end_headers()
                if with_body:
                    self.wfile.write(data)

            def do_GET(self):
                self._answer(True)

            def do_HEAD(self):
                self._answer(False)

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def index(self, folder):
        """The page of a folder, as web servers write it; None if there is none."""
        prefix = folder.rstrip("/") + "/" if folder else ""
        below = [name.removeprefix(prefix) for name in self.files if name.startswith(prefix)]
        links = {name.partition("/")[0] + ("/" if "/" in name else "") for name in below}
        return "".join(f'<a href="{quote(link)}">{link}</a>' for link in sorted(links)).encode() if links else None

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
