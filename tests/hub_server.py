"""A Hugging Face hub on this machine: what huggingface_hub asks of it to make, fill and read a repository of models."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_test"


class Hub:
    """Repositories by name, each a list of commits of {path: content}. `requests` has each `METHOD path`."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.stored: dict[str, bytes] = {}  # by their SHA-256: what was sent ahead of a commit
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            def __init__(self, *arguments: Any) -> None:
                self.hub = hub
                super().__init__(*arguments)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """One more commit; returns its hash."""
        before = self.repositories.setdefault(name, [])
        before.append((before[-1] if before else {}) | files)
        return commit_hash(name, len(before) - 1)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def commit_hash(name: str, index: int) -> str:
    return hashlib.sha1(f"{name} {index}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        path = self._begin()
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            found = self._commit(match[1], match[2] or "main")
            if found is not None:
                commit, files = found
                siblings = [{"rfilename": name} for name in files]
                self._json(200, {"id": match[1], "modelId": match[1], "sha": commit, "siblings": siblings, "tags": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            found = self._commit(*match.groups())
            if found is not None:
                entries = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in found[1].items()
                ]
                self._json(200, entries)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        else:
            self._json(404, {"error": "Not found"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        path = self._begin()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            if name in self.hub.repositories:
                self._json(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
                return
            self.hub.add(name, {".gitattributes": b""})
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            self._json(200, {"url": f"{self.hub.url}/{name}", "name": name})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                 "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            self._json(200, {"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._json(200, {"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            files: dict[str, bytes] = {}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.stored[value["oid"]]
            commit = self.hub.add(match[1], files)
            self._json(
                200, {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{match[1]}/commit/{commit}"}
            )
        else:
            self._json(200 if path.startswith("/api/validate-yaml") else 404, {"errors": [], "warnings": []})

    def do_PUT(self) -> None:
        path = self._begin()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = path.removeprefix("/upload/")
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.stored[oid] = content
        self._json(200, {})

    def _begin(self) -> str:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(hash, files), or None with the answer sent."""
        commits = self.hub.repositories.get(name)
        hidden = name in self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if commits is None or hidden:
            self._json(401, {"error": "Invalid username or password."}, {"X-Error-Code": "RepoNotFound"})
            return None
        hashes = [commit_hash(name, index) for index in range(len(commits))]
        if revision != "main" and revision not in hashes:
            self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        index = len(commits) - 1 if revision == "main" else hashes.index(revision)
        return hashes[index], commits[index]

    def _file(self, name: str, revision: str, path: str) -> None:
        found = self._commit(name, revision)
        if found is None:
            return
        commit, files = found
        if path not in files:
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content = files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self._send(200, content, headers | {"Content-Type": "application/octet-stream"})

    def _json(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
