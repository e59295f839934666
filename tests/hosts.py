"""A server on this machine, some of whose answers are faulty."""

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Host:
    """Gives each path what its table holds; other paths: 404.

    Bytes are sent at once, from where the request asks, if it does. An int is a status without
    content. ("trickle", bytes) gives one byte in a tenth of a second; ("short", bytes) half of what
    is asked for, though all is announced; ("stubborn", bytes) the same from the first byte on,
    whatever is asked for; ("unannounced", bytes) all without telling how much. None never gets an
    answer.
    """

    def __init__(self, table: dict):
        host, self.asked, self.over = self, Counter(), threading.Event()
        self.ranges = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                host.asked[self.path] += 1
                given = table.get(self.path, 404)
                if given is None:
                    return host.over.wait()
                if isinstance(given, int):
                    return self.send_error(given)
                how, data = given if isinstance(given, tuple) else ("whole", given)
                begun = self.begun(how, data)
                if begun > len(data) or begun and begun == len(data):
                    return self.send_error(416)
                self.send_response(206 if begun else 200)
                if how != "unannounced":
                    self.send_header("Content-Length", str(len(data) - begun))
                self.end_headers()
                data = data[begun:]
                if how == "trickle":
                    return self.trickle(data)
                short = how in ("short", "stubborn")
                return self.wfile.write(data[: (len(data) + 1) // 2] if short else data)

            def begun(self, how: str, data: bytes) -> int:
                asked = self.headers["Range"]
                if not asked or how == "stubborn":
                    return 0
                host.ranges.append(asked)
                return int(asked.removeprefix("bytes=").removesuffix("-"))

            def trickle(self, data: bytes):
                for byte in data:
                    if host.over.wait(0.1):
                        return
                    try:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                    except OSError:  # the other side has left
                        return

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
