"""A cloud to bring clusters up in: moto's server, and hosts of namespaces that come and go with its instances.

Run as `python -m support.cloud PORT FOLDER` it is the server: each launch and each end of an instance is told in
FOLDER/events.jsonl, and a spot instance is refused for want of capacity while FOLDER/no-spot is there. Left out: rights
(any key may do anything), prices, and the time that real instances take.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.hosts import Host, tail, wait_until

EVENTS, NO_SPOT = "events.jsonl", "no-spot"


def serve(port: int, folder: Path) -> None:
    """The server, until it is ended."""
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models.instances import Instance, InstanceBackend
    from moto.server import main

    def tell(event: str, **what: object) -> None:
        with (folder / EVENTS).open("a") as file:
            file.write(json.dumps({"event": event, **what}) + "\n")

    launch, end = InstanceBackend.run_instances, Instance.terminate

    def run_instances(backend: Any, image_id: str, count: int, *rest: Any, **options: Any) -> Any:
        what = {"type": options.get("instance_type"), "spot": options.get("instance_market_options") == "spot"}
        if what["spot"] and (folder / NO_SPOT).exists():
            tell("refused", **what)
            raise EC2ClientError("InsufficientInstanceCapacity", f"no spot {what['type']} is to be had")
        reservation = launch(backend, image_id, count, *rest, **options)
        for instance in reservation.instances:
            tell("launched", **what, id=instance.id, address=instance.private_ip)
        return reservation

    def terminate(instance: Any) -> Any:
        tell("terminated", id=instance.id)
        return end(instance)

    InstanceBackend.run_instances, Instance.terminate = run_instances, terminate  # type: ignore[method-assign]
    main(["--host", "0.0.0.0", "--port", str(port)])


class Cloud:
    """The server on a host, and a host for each instance that it tells of.

    Attributes:
        instances: the hosts that run, by their instance's id.
        environment: what makes AWS's clients talk to this cloud.
    """

    def __init__(self, host: Host, make: Callable[[str, str, dict[str, str]], Host], port: int = 5566) -> None:
        """A server, which is waited for by `with`.

        Args:
            host: where it runs.
            make: a host for an instance's id and address, with an environment.
        """
        self.folder, self.make, self.instances = host.folder / "cloud", make, dict[str, Host]()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{host.address}:{port}", "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any",
        }  # fmt: skip
        self.problems: list[str] = []
        self._over = threading.Event()
        self.folder.mkdir()
        (self.folder / EVENTS).touch()
        ours = ["env", f"PYTHONPATH={Path(__file__).parents[1]}", "MOTO_IAM_LOAD_MANAGED_POLICIES=true"]
        command = [f"{host.environment['HOME']}/venv/bin/python", "-m", "support.cloud", port, self.folder]
        self._server = host.start([*ours, *command], self.folder / "server.log")
        self._answers = ["bash", "-c", f"exec 3<>/dev/tcp/{host.address}/{port}"]
        self._host, self._watch = host, threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Cloud:
        log = self.folder / "server.log"
        wait_until(lambda: self._host.call(self._answers).returncode == 0, 60, lambda: tail(log.read_text()))
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()
        self._server.kill()
        self._server.wait()
        for host in self.instances.values():
            host.close()
        assert not self.problems, "\n".join(self.problems)

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """What has happened so far, oldest first: all, or the events of one name."""
        whole = (self.folder / EVENTS).read_text().rpartition("\n")[0]
        told = [json.loads(line) for line in whole.splitlines()]
        return [one for one in told if event in (None, one["event"])]

    def refuse_spot(self) -> None:
        """From now on there is no spot instance to be had."""
        (self.folder / NO_SPOT).touch()

    def _follow(self) -> None:
        seen = 0
        while not self._over.wait(0.2):  # hosts die with the thread that made them: this one outlives them
            for event in self.events()[seen:]:
                seen += 1
                try:
                    self._make_or_end(event)
                except Exception:
                    self.problems.append(traceback.format_exc())

    def _make_or_end(self, event: dict[str, Any]) -> None:
        if event["event"] == "launched":
            self.instances[event["id"]] = self.make(event["id"], event["address"], self.environment)
        elif event["event"] == "terminated" and event["id"] in self.instances:
            self.instances.pop(event["id"]).close()


if __name__ == "__main__":
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    serve(int(sys.argv[1]), Path(sys.argv[2]))
