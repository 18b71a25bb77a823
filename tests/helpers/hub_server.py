"""Serve the part of the HTTP interface of the Hugging Face hub that uploads and downloads of models need."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote, urlsplit

TOKEN = "hf_standInOfTheHub"


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: dict[str, dict[str, bytes]] = {}  # name -> path -> content

    def log_message(self, *_):
        pass

    def answer(self, status, content, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            return self.answer(200, dict(errors=[], warnings=[]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, dict(error="Invalid username or password."))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            assert asked.get("private") or asked.get("visibility") == "private"  # by the version of huggingface_hub
            self.repositories.setdefault(name, {})
            return self.answer(200, dict(url=f"http://{self.headers['Host']}/{name}"))
        name, action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path).groups()
        if action == "preupload":
            how = dict(uploadMode="regular", shouldIgnore=False)
            return self.answer(200, dict(files=[dict(path=f["path"], **how) for f in json.loads(body)["files"]]))
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        address = f"http://{self.headers['Host']}/{name}/commit/{self.commit(name)}"
        return self.answer(200, dict(commitUrl=address, commitOid=self.commit(name)))

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/\w+", path)
        found = found or re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/\w+/(.*)", path)
        if not found or found[1] not in self.repositories:
            return self.answer(404, dict(error="Repository not found"), X_Error_Code="RepoNotFound")
        name, files = found[1], self.repositories[found[1]]
        if found[2] == "revision":
            siblings = [dict(rfilename=file) for file in files]
            return self.answer(200, dict(id=name, sha=self.commit(name), siblings=siblings, private=True, tags=[]))
        if found[2] == "tree":
            rows = [dict(type="file", path=file, size=len(files[file]), oid=self.oid(files[file])) for file in files]
            return self.answer(200, rows)
        content = files[found[3]]
        return self.answer(200, content, ETag=f'"{self.oid(content)}"', X_Repo_Commit=self.commit(name))

    do_HEAD = do_GET

    def commit(self, name):
        return self.oid(json.dumps({k: self.oid(v) for k, v in self.repositories[name].items()}).encode())

    @staticmethod
    def oid(content):
        return hashlib.sha1(content).hexdigest()


@contextlib.contextmanager
def hub():
    """Yield the address of an empty hub on the loopback, and its repositories: name -> path -> content."""
    handler = type("OneHub", (Hub,), dict(repositories={}))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.repositories
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
