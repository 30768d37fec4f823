"""The current engine of ClickHouse (chDB) behind its HTTP interface, as far as the sink uses it.

`python chdb_front.py FOLDER` prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from chdb.session import Session

_SETTINGS = ("insert_deduplication_token", "async_insert")


def make_handler(folder: str, session: Session) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    def answer(asked: dict[str, str], body: bytes) -> bytes:
        if "query" not in asked:
            return bytes(session.query(body.decode(), "JSONCompact").bytes())  # type: ignore[no-untyped-call]  # theirs
        settings = ", ".join(f"{name} = '{asked[name]}'" for name in _SETTINGS if name in asked)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(body)
            file.flush()
            source = f" FROM INFILE '{file.name}' SETTINGS {settings} FORMAT Native"
            statement = asked["query"].replace(" FORMAT Native", source)
            return bytes(session.query(statement).bytes())  # type: ignore[no-untyped-call]  # theirs

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = parse_qs(self.path.partition("?")[2])
            try:
                with lock:
                    status, content = 200, answer({k: v[0] for k, v in query.items()}, body)
            except RuntimeError as error:
                status, content = 500, str(error).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Say nothing."""

    return Handler


def main(folder: str) -> None:
    session = Session(str(Path(folder) / "data"))  # type: ignore[no-untyped-call]  # theirs
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(folder, session))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
