"""A Hub of one thread on this machine: enough of its protocol for the real client to list, fetch and commit models."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40


def described(file):
    """A file as the Hub describes it: large ones have their SHA-256."""
    told = {"rfilename": file.name, "size": file.stat().st_size}
    if file.suffix in (".safetensors", ".bin"):
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        told["lfs"] = {"sha256": sha256, "size": told["size"], "pointerSize": 134}
    return told


@contextmanager
def serve(models=None, refuse=None, store=None, trouble=None):
    """Serve folders by id, or answer everything with (status, X-Error-Code); yields (address, paths asked for).

    `store` is a folder that commits are written to, as store/owner/name/branch. `trouble` is called with each request's
    method, path and whole answer, and may give another answer: (status, bytes of which only a part may come).
    """
    asked = []
    objects = {}

    def repositories():
        """Those given, and those that were uploaded."""
        made = {f"{f.parent.parent.parent.name}/{f.parent.parent.name}": f.parent
                for f in (store.glob("*/*/main/*") if store else ())}  # fmt: skip
        return {**(models or {}), **made}

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert hashlib.sha256(body).hexdigest() == self.path.rsplit("/", 1)[1]
            asked.append(self.path)
            if trouble and (other := trouble("PUT", self.path, b"")):
                return self.reply(other[0])
            objects[self.path.rsplit("/", 1)[1]] = body
            return self.reply(200)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(self.path)
            here = f"http://{self.headers['Host']}"
            if refuse:
                return self.reply(refuse[0], headers={"X-Error-Code": refuse[1]})
            if trouble and (other := trouble("POST", self.path, body)):
                return self.reply(other[0])
            if self.path == "/api/repos/create":
                made = json.loads(body)
                name = "/".join(filter(None, (made.get("organization"), made["name"])))
                (store / name).mkdir(parents=True, exist_ok=True)
                (store / name / "created.json").write_text(json.dumps(made))
                return self.reply(200, json.dumps({"url": f"{here}/{name}", "name": name}).encode())
            if "/preupload/" in self.path:
                files = [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                     "shouldIgnore": False, "oid": None} for f in json.loads(body)["files"]
                ]  # fmt: skip
                return self.reply(200, json.dumps({"files": files}).encode())
            if self.path.endswith("/info/lfs/objects/batch"):
                given = []
                for wanted in json.loads(body)["objects"]:
                    entry = {"oid": wanted["oid"], "size": wanted["size"]}
                    if wanted["oid"] not in objects:
                        entry["actions"] = {"upload": {"href": f"{here}/lfs/{wanted['oid']}"}}
                    given.append(entry)
                return self.reply(200, json.dumps({"transfer": "basic", "objects": given}).encode())
            if "/commit/" in self.path:
                name, branch = self.path.removeprefix("/api/models/").split("/commit/")
                lines = [json.loads(line) for line in body.splitlines()]
                folder = store / name / branch
                folder.mkdir(parents=True, exist_ok=True)
                for line in lines[1:]:
                    value = line["value"]
                    data = base64.b64decode(value["content"]) if line["key"] == "file" else objects[value["oid"]]
                    (folder / value["path"]).write_bytes(data)
                done = {"commitOid": COMMIT, "commitUrl": f"{here}/{name}/commit/{COMMIT}", "success": True}
                return self.reply(200, json.dumps(done).encode())
            if self.path == "/api/validate-yaml":
                return self.reply(200, b'{"errors": [], "warnings": []}')
            if "/branch/" in self.path:
                return self.reply(200, b"{}")
            return self.reply(404)

        def answer(self):
            asked.append(self.path)
            if refuse:
                return self.reply(refuse[0], headers={"X-Error-Code": refuse[1], "X-Error-Message": refuse[1]})
            for name, folder in repositories().items():
                if self.path.split("?")[0] == f"/api/models/{name}":
                    files = [described(f) for f in sorted(folder.iterdir()) if f.is_file()]
                    made = folder.parent / "created.json"
                    private = made.is_file() and "public" not in made.read_text()
                    private &= '"private": false' not in made.read_text() if made.is_file() else False
                    told = {"id": name, "sha": COMMIT, "siblings": files, "private": private}
                    return self.reply(200, json.dumps(told).encode())
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
                    whole = file.read_bytes()
                    headers = {"ETag": f'"{hashlib.sha1(whole).hexdigest()}"', "X-Repo-Commit": COMMIT}
                    headers["Accept-Ranges"] = "bytes"
                    asked_from = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
                    status, body = (206, whole[asked_from:]) if asked_from else (200, whole)
                    if asked_from:
                        headers["Content-Range"] = f"bytes {asked_from}-{len(whole) - 1}/{len(whole)}"
                    if trouble and (other := trouble(self.command, self.path, body)):
                        status, part = other
                        if status >= 400:
                            return self.reply(status)
                        self.send_response(status)  # promises all, sends a part, hangs up
                        for header, value in {**headers, "Content-Length": str(len(body))}.items():
                            self.send_header(header, value)
                        self.end_headers()
                        self.wfile.write(part)
                        self.wfile.flush()
                        self.close_connection = True
                        return None
                    return self.reply(status, body, headers)
            return self.reply(404, headers={"X-Error-Code": "RepoNotFound"})

        def reply(self, status, body=b"", headers=None):
            self.send_response(status)
            for header, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command != "HEAD":
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
