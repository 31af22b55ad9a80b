"""A stand-in for an MLflow server on loopback: as much of its REST interface as the mirror uses, and what was sent."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_API = "/api/2.0/mlflow/"


class MlflowStandIn:
    """One experiment and its runs, for whoever knows the user and password; artifacts are written to `artifacts`."""

    def __init__(self, artifacts: Path, user: str, password: str) -> None:
        self.artifacts, self.sent = artifacts, list[str]()
        """Every request's path and body, without its headers."""
        self.seconds = 0.0
        """How long each answer takes."""
        self.runs: dict[str, dict[str, Any]] = {}
        self._experiment: dict[str, Any] | None = None
        self._basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    @contextmanager
    def serving(self) -> Iterator[int]:
        """The port, while it answers."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"mlflow": self}))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            server.server_close()

    def answer(self, call: str, given: dict[str, Any]) -> dict[str, Any] | None:
        """What the server says; None for what is not there."""
        match call:
            case "experiments/create":
                self._experiment = {"experiment_id": "1", "name": given["name"], "lifecycle_stage": "active"}
                self._experiment["tags"] = given.get("tags", [])
                return {"experiment_id": "1"}
            case "experiments/get" | "experiments/get-by-name":
                return self._experiment and {"experiment": self._experiment}
            case "runs/create":
                return {"run": self._create(given)}
            case "runs/get":
                return {"run": self.runs[given["run_id"]]}
            case "runs/search":
                return {"runs": list(self.runs.values())}
            case "runs/log-batch" | "runs/set-tag" | "runs/update":
                run = self.runs[given["run_id"]]
                run["data"]["tags"] += [given] if call == "runs/set-tag" else given.get("tags", [])
                run["info"]["status"] = given.get("status", run["info"]["status"])
                return {"run_info": run["info"]}
            case "experiments/set-experiment-tag" | "runs/delete-tag" | "metrics/get-history":
                return {}
        return None

    def _create(self, given: dict[str, Any]) -> dict[str, Any]:
        name = f"{len(self.runs):032x}"
        info = {
            "run_id": name, "run_uuid": name, "experiment_id": "1", "status": "RUNNING", "lifecycle_stage": "active",
            "artifact_uri": (self.artifacts / name).as_uri(), "run_name": given.get("run_name", ""),
        }  # fmt: skip
        self.runs[name] = {"info": info, "data": {"tags": given.get("tags", []), "metrics": [], "params": []}}
        return self.runs[name]


class _Handler(BaseHTTPRequestHandler):
    mlflow: MlflowStandIn

    def do_GET(self) -> None:
        time.sleep(self.mlflow.seconds)
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.mlflow.sent.append(f"{self.command} {self.path} {body}")
        if self.headers["Authorization"] != self.mlflow._basic:
            self._say(401, {"error_code": "PERMISSION_DENIED", "message": "who are you?"})
            return
        given = json.loads(body) if body else dict(parse_qsl(url.query))
        answer = self.mlflow.answer(url.path.removeprefix(_API), given)
        missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": self.path}
        self._say(404 if answer is None else 200, missing if answer is None else answer)

    do_POST = do_PATCH = do_GET

    def _say(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing on the screen."""
