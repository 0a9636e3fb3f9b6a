"""A wandb server on this machine: as much of its protocol as tracking, `wandb sync` and a saved view need.

Like the real one it knows nothing of offline segments: history lines land at the offset that the client names, and what
stood there is replaced.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class StoredRun:
    """What the server knows of a run."""

    variables: dict[str, Any]  # of the newest upsert, those that were not null
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    files: list[str] = field(default_factory=list)


class WandbServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, StoredRun] = {}
        self.views: list[dict[str, Any]] = []
        self.unknown: list[str] = []  # queries that it had no answer to
        self.silent = threading.Event()  # while set, requests are accepted and not answered
        self.but_for: bytes | None = None  # but for those with this in them
        self.over = threading.Event()
        self.overwrites = False  # an upsert of a known run is answered as if the run had no history yet

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    server = WandbServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.silent.is_set() and (self.server.but_for is None or self.server.but_for not in body):
            self.server.over.wait(60)
            return
        if self.path.endswith("/file_stream"):
            self._stream(self.path.split("/")[-2], json.loads(body))
            self._answer({"exitcode": None, "limits": {}})
        else:
            request = json.loads(body)
            self._answer({"data": self._data(request["query"], request.get("variables") or {})})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def _stream(self, run_id: str, request: dict[str, Any]) -> None:
        run = self.server.runs[run_id]
        for name, chunk in (request.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]] if name.endswith((".jsonl", ".json")) else []
            if name == "wandb-history.jsonl":
                run.history[chunk["offset"] : chunk["offset"] + len(lines)] = lines
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        if request.get("complete"):
            run.exit_code = request["exitcode"]

    def _data(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        server = self.server
        if "upsertBucket" in query:
            given = {key: value for key, value in variables.items() if value is not None}
            known = server.runs.setdefault(variables["name"], StoredRun({}))
            known.variables |= given
            entity = {"id": "e", "name": variables["entity"] or "me"}
            project = {"id": "p", "name": variables["project"], "entity": entity}
            bucket = {"id": "b", "name": variables["name"], "displayName": known.variables.get("displayName")}
            bucket |= {"description": None, "config": known.variables.get("config"), "sweepName": None}
            bucket |= {"project": project, "historyLineCount": 0 if server.overwrites else len(known.history)}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "RunResumeStatus" in query:
            entity = {"id": "e", "name": variables["entity"] or "me"}
            model = {"id": "p", "name": variables["project"], "entity": entity, "bucket": None}
            if run := server.runs.get(variables["name"]):
                model["bucket"] = {
                    "id": "b",
                    "name": variables["name"],
                    "summaryMetrics": json.dumps(run.summary),
                    "displayName": run.variables.get("displayName"),
                    "logLineCount": 0,
                    "historyLineCount": len(run.history),
                    "eventsLineCount": 0,
                    "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
                    "eventsTail": "[]",
                    "config": run.variables.get("config"),
                    "tags": run.variables.get("tags"),
                    "notes": run.variables.get("notes"),
                    "wandbConfig": '{"t": 1}',
                }
            return {"model": model}
        if "createRunFiles" in query:
            server.runs[variables["run"]].files += variables["files"]
            files = [{"name": name, "uploadUrl": f"{server.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "upsertView" in query:
            server.views.append(variables)
            return {"upsertView": {"view": {"id": "view-1", "name": variables["name"]}, "inserted": True}}
        if "serverInfo" in query or "ServerFeatures" in query:
            return {"serverInfo": {"features": [], "cliVersionInfo": None, "latestLocalVersionInfo": None}}
        if "viewer" in query:
            viewer = {"id": "u", "entity": "me", "username": "me", "email": "me@example.org", "flags": "{}"}
            return {"viewer": viewer | {"teams": {"edges": []}}}
        server.unknown.append(query)
        return {}

    def _answer(self, content: dict[str, Any]) -> None:
        answer = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass
