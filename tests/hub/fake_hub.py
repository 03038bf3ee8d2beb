"""A Hub of one thread on this machine: enough of its protocol for the real client to list and fetch one model."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40


@contextmanager
def serve(models=None, refuse=None):
    """Serve folders by id, or answer everything with (status, X-Error-Code); yields (address, paths asked for)."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            asked.append(self.path)
            if refuse:
                return self.reply(refuse[0], headers={"X-Error-Code": refuse[1], "X-Error-Message": refuse[1]})
            for name, folder in models.items():
                if self.path.startswith(f"/api/models/{name}/revision/"):
                    files = [{"rfilename": f.name} for f in sorted(folder.iterdir())]
                    return self.reply(200, json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode())
                if self.path.startswith(f"/api/models/{name}/tree/"):
                    files = [
                        {
                            "type": "file",
                            "path": f.name,
                            "size": f.stat().st_size,
                            "oid": hashlib.sha1(f.read_bytes()).hexdigest(),
                        }
                        for f in sorted(folder.iterdir())
                    ]
                    return self.reply(200, json.dumps(files).encode())
                file = folder / self.path.rsplit("/", 1)[1]
                if self.path.startswith(f"/{name}/resolve/") and file.is_file():
                    etag = f'"{hashlib.sha1(file.read_bytes()).hexdigest()}"'
                    return self.reply(200, file.read_bytes(), {"ETag": etag, "X-Repo-Commit": COMMIT})
            return self.reply(404, headers={"X-Error-Code": "RepoNotFound"})

        def reply(self, status, body=b"", headers=None):
            self.send_response(status)
            for header, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
