"""A hub on this machine: the few requests that an upload makes, answered over HTTP, and what arrived in them."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """`files` holds what was committed, by repository and name; `mood` is kind, refusing, failing or silent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.mood = "kind"
        self.large: dict[str, bytes] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.is_private: dict[str, bool] = {}
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """One request; repositories are called user/name."""

    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def say(self, value: Any, code: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.say({"error": "Not found"}, 404)

    def do_PUT(self) -> None:
        content = self.body()
        assert self.path == f"/large/{hashlib.sha256(content).hexdigest()}"
        self.server.large[self.path.rsplit("/", 1)[-1]] = content
        self.say({})

    def do_POST(self) -> None:
        hub, content = self.server, self.body()
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.mood == "silent":
            time.sleep(5)
        elif hub.mood == "refusing":
            self.say({"error": "You don't have the rights to create a model under this namespace"}, 403)
        elif hub.mood == "failing" and "/commit/" in self.path:
            self.say({"error": "Internal Error"}, 500)
        elif self.path == "/api/repos/create":
            self.create(json.loads(content))
        elif self.path == "/api/validate-yaml":
            self.say({"warnings": [], "errors": []})
        elif "/preupload/" in self.path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] > 100_000 else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(content)["files"]
            ]
            self.say({"files": modes})
        elif self.path.endswith("/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.address}/large/{one['oid']}"}}}
                for one in json.loads(content)["objects"]
            ]
            self.say({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self.commit([json.loads(line) for line in content.splitlines()])

    def create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.server.files:
            return self.say({"error": "exists", "url": f"{self.server.address}/{repo}"}, 409)
        self.server.files[repo], self.server.is_private[repo] = (
            {},
            asked.get("private") is True or asked.get("visibility") == "private",
        )
        return self.say({"url": f"{self.server.address}/{repo}"})

    def commit(self, lines: list[dict[str, Any]]) -> None:
        repo = "/".join(self.path.split("/")[3:5])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[repo][value["path"]] = self.server.large[value["oid"]]
        self.say({"commitUrl": f"{self.server.address}/{repo}/commit/1", "commitOid": "1"})


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
