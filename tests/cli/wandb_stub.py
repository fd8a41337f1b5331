"""A server on this machine that answers what `wandb sweep`, `wandb agent` and a run that is logged online ask."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY, PROJECT, SWEEP = "us", "demo", "sw33p"


class WandbStub:
    """What it was asked, and what it answers.

    Args:
        trials: Parameters of each run that an agent is told to start, one after another.
    """

    def __init__(self, trials: list[dict[str, Any]]) -> None:
        self.asked: list[str] = []
        """Names of the operations, in order."""
        self.config = ""
        """The sweep file, as `wandb sweep` sent it."""
        self.started: list[str] = []
        """Identifiers of the runs."""
        self.runs: list[dict[str, Any]] = []
        """What was said of runs: name, groupName, jobType, tags, notes, config and the like."""
        self.history: list[dict[str, Any]] = []
        """Rows of the curves, in the order in which they came."""
        self.address = ""
        self._trials = list(trials)

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        project = {"id": "p", "name": PROJECT, "entity": {"id": "e", "name": ENTITY}}
        if operation == "UpsertSweep":
            self.config = variables["config"]
            return {"upsertSweep": {"sweep": {"name": SWEEP, "project": project}, "configValidationWarnings": []}}
        if operation == "SweepWithRuns":
            return {"project": {"sweep": {"id": "s", "name": SWEEP, "config": self.config, "runs": {"edges": []}}}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "a"}}}
        if operation == "Heartbeat":
            return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(self._commands(variables))}}
        if "viewer" in operation.lower():
            teams = {"edges": [{"node": {"id": "e", "name": ENTITY}}]}
            return {"viewer": {"id": "v", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": teams}}
        if operation == "UpsertBucket":
            self.runs.append(variables)
            bucket = {"id": "b", "name": variables["name"], "project": project, "config": variables["config"]}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.address}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def streamed(self, files: dict[str, Any]) -> None:
        """Takes up lines of a run's files."""
        lines = files.get("wandb-history.jsonl", {}).get("content", [])
        self.history += [json.loads(line) for line in lines]

    def _commands(self, variables: dict[str, Any]) -> list[dict[str, Any]]:
        if json.loads(variables["runState"]):  # one is under way
            return []
        if not self._trials:
            return [{"type": "exit"}]
        self.started.append(f"run{len(self.started)}")
        args = {name: {"value": value} for name, value in self._trials.pop(0).items()}
        return [{"type": "run", "run_id": self.started[-1], "program": "", "args": args}]


@contextmanager
def wandb_server(stub: WandbStub) -> Iterator[str]:
    """Its address, for WANDB_BASE_URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            content = json.loads(body)
            if self.path.endswith("/file_stream"):
                stub.streamed(content.get("files") or {})
                self._say({})
                return
            words = content["query"].replace("(", " ").replace("{", " ").split()
            operation = content.get("operationName") or words[1]
            stub.asked.append(operation)
            self._say({"data": stub.answer(operation, content.get("variables") or {})})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._say({})

        def _say(self, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Into no test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield stub.address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
