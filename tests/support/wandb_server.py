"""As much of a wandb server as a run needs, on the loopback address."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class WandbServer(ThreadingHTTPServer):
    """Keeps the rows that runs send it.

    Attributes:
        rows: By run, its history in the order in which it arrived.
        projects: By run, in which project it is.
        sweep: The YAML text of the one sweep that there is.
        trials: The sweep's remaining runs: by run, the value of each parameter.
        answers: Whoever asks is kept waiting while this is not set.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rows: dict[str, dict[int, dict[str, Any]]] = {}
        self.projects: dict[str, str] = {}
        self.sweep = ""
        self.trials: dict[str, dict[str, Any]] = {}
        self.answers = threading.Event()
        self.answers.set()

    @property
    def url(self) -> str:
        """The address for WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self.server_port}"

    def numbers(self, run_dir: Path) -> list[int]:
        """Return wandb's numbers of the rows that have arrived of a directory's run."""
        run_id = (run_dir / "wandb_run_id").read_text()
        return [row["_step"] for row in self.rows.get(run_id, {}).values()]

    def query(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answer a GraphQL query."""
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        if name == "Viewer":
            return {"viewer": {"id": "v", "entity": "e", "username": "v", "teams": {"edges": []}}}
        if name == "UpsertBucket":
            run = variables["name"]
            self.rows.setdefault(run, {})
            self.projects.setdefault(run, variables["project"])
            bucket = {"id": run, "name": run, "displayName": run, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "RunResumeStatus":
            rows = self.rows.get(variables["name"])
            if rows is None:
                return {"model": None}
            bucket = {
                **{"id": "b", "name": variables["name"], "config": "{}", "wandbConfig": '{"t": 1}'},
                **{"summaryMetrics": "{}", "eventsTail": "[]", "tags": [], "logLineCount": 0},
                **{"eventsLineCount": 0, "historyLineCount": len(rows)},
                "historyTail": json.dumps([json.dumps(row) for row in list(rows.values())[-1:]]),
            }
            return {"model": {**project, "bucket": bucket}}
        if name == "CreateRunFiles":
            files = [
                {"name": file, "uploadUrl": f"{self.url}/{file}"} for file in variables["files"]
            ]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if name == "SweepWithRuns":
            return {"project": {"sweep": {"config": self.sweep, "runs": {"edges": []}}}}
        if name == "CreateAgent":
            return {"createAgent": {"agent": {"id": "agent"}}}
        if name == "Heartbeat":
            commands = [] if "true" in variables["runState"] else [self._next_command()]
            return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(commands)}}
        raise NotImplementedError(name)

    def _next_command(self) -> dict[str, Any]:
        if not self.trials:
            return {"type": "exit"}
        run = next(iter(self.trials))
        chosen = {name: {"value": value} for name, value in self.trials.pop(run).items()}
        return {"type": "run", "run_id": run, "args": chosen, "program": ""}


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        content = json.loads(self._read() or "{}")
        if self.path == "/graphql":
            name = re.search(r"(?:query|mutation) (\w+)", content["query"])
            try:
                self._answer(
                    {
                        "data": self.server.query(
                            name[1] if name else "", content.get("variables", {})
                        )
                    }
                )
            except NotImplementedError as error:
                self._answer({"data": None, "errors": [{"message": f"no {error}"}]})
            return
        if history := content.get("files", {}).get("wandb-history.jsonl"):
            rows = self.server.rows[self.path.split("/")[-2]]
            for index, text in enumerate(history["content"], start=history["offset"]):
                rows[index] = json.loads(text)
        self._answer({})

    def do_PUT(self) -> None:
        self._read()
        self._answer({})

    def _read(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.answers.wait()
        return body

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that was killed
            super().handle()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Serve on a free port."""
    with WandbServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        server.answers.set()
        thread.join()
