"""S3 on 127.0.0.1: moto's server in this process, with faults between it and whoever asks.

The faults are a layer of WSGI that has the connection's socket: it may answer in the server's place, late, or not at
all. Nothing asks any other address: the endpoint and made-up credentials are in the environment, and no others are
looked for. Rights, regions and the atomicity of S3 are not moto's; see the tests for what is made up for.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from xml.sax.saxutils import escape

import pytest

Request = dict[str, Any]
"""Of WSGI: its `environ`."""
Answer = Callable[[Any, Request, Any], Iterable[bytes]]
"""Called with the server's application, the request, and WSGI's `start_response`."""
Fault = Callable[[int, Request], Answer | None]
"""What happens to a request, by its number; None: nothing."""


class S3:
    """A server, the requests that it got, and the fault that meets them.

    Attributes:
        endpoint: its URL.
        fault: of every further request.
        requests: `METHOD path` of each so far.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log(self, *_: Any) -> None:
                pass

        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Silent)
        self._numbers, self._thread = itertools.count(1), threading.Thread(target=self._server.serve_forever)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.fault: Fault | None = None
        self.requests: list[str] = []
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """What a process needs to find it, and nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": "made-up", "AWS_SECRET_ACCESS_KEY": "made-up",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
            "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }  # fmt: skip

    @cached_property
    def client(self) -> Any:
        """Of boto3."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id="made-up",
            aws_secret_access_key="made-up",
        )  # fmt: skip

    def bucket(self) -> str:
        """The URL of a storage in a new bucket."""
        name = f"deftx-{uuid.uuid4().hex}"
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}/results"

    def objects(self, url: str) -> dict[str, bytes]:
        """What lies under a URL, by key, as the server has it."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {key: self.client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    @contextmanager
    def meeting(self, fault: Fault) -> Iterator[None]:
        """A context in which requests meet a fault; they are numbered from 1."""
        self._numbers, self.fault = itertools.count(1), fault
        self.requests.clear()
        try:
            yield
        finally:
            self.fault = None

    def _answer(self, request: Request, start: Any) -> Iterable[bytes]:
        self.requests.append(f"{request['REQUEST_METHOD']} {request['PATH_INFO']}")
        answer = self.fault(next(self._numbers), request) if self.fault else None
        done: Iterable[bytes] = (
            answer(self._application, request, start) if answer else self._application(request, start)
        )
        return done


@contextmanager
def running() -> Iterator[S3]:
    """A server, to which this process's environment points."""
    import s3fs

    server = S3()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # those of another server
        yield server
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def every(number: int, *answers: Answer, method: str = "") -> Fault:
    """Each so manieth request (of a method, where one is given) meets the answers in turn."""
    counted, in_turn = itertools.count(1), itertools.cycle(answers)

    def fault(_: int, request: Request) -> Answer | None:
        if method and request["REQUEST_METHOD"] != method:
            return None
        return next(in_turn) if next(counted) % number == 0 else None

    return fault


def first(*answers: Answer, method: str, ending: str = "") -> Fault:
    """The first requests of a method, to a path with this ending, meet the answers, one each."""
    left = list(answers)

    def fault(_: int, request: Request) -> Answer | None:
        meant = request["REQUEST_METHOD"] == method and request["PATH_INFO"].endswith(ending)
        return left.pop(0) if meant and left else None

    return fault


def always(answer: Answer, *methods: str) -> Fault:
    """Every request, or every one of some methods."""
    return lambda _, request: answer if not methods or request["REQUEST_METHOD"] in methods else None


def error(status: str, code: str, words: str) -> Answer:
    """An answer of S3 that is an error."""

    def answer(_: Any, request: Request, start: Any) -> Iterable[bytes]:
        _body(request)
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{escape(words)}</Message></Error>".encode()
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))])
        return [] if request["REQUEST_METHOD"] == "HEAD" else [content]

    return answer


SLOW_DOWN = error("503 Service Unavailable", "SlowDown", "Please reduce your request rate.")
INTERNAL = error("500 Internal Server Error", "InternalError", "We encountered an internal error. Please try again.")
DENIED = error("403 Forbidden", "AccessDenied", "Access Denied")


def reset(_: Any, request: Request, start: Any) -> Iterable[bytes]:
    """The connection is lost before an answer."""
    return _lose(request)


def cut_upload(_: Any, request: Request, start: Any) -> Iterable[bytes]:
    """The connection is lost amid the body of an upload; the server has nothing of it."""
    request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0) // 2)
    return _lose(request)


def lost_answer(application: Any, request: Request, start: Any) -> Iterable[bytes]:
    """What was asked is done, and the connection lost before the answer."""
    list(application(request, lambda *_: None))
    return _lose(request)


def cut_download(application: Any, request: Request, start: Any) -> Iterable[bytes]:
    """The connection is lost amid the answer's body."""
    content = b"".join(application(request, start))
    yield content[: len(content) // 2]
    yield from _lose(request)


def late(seconds: float) -> Answer:
    """The right answer, after some time."""

    def answer(application: Any, request: Request, start: Any) -> Iterable[bytes]:
        time.sleep(seconds)
        done: Iterable[bytes] = application(request, start)
        return done

    return answer


def _body(request: Request) -> bytes:
    return bytes(request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0)))


def _lose(request: Request) -> Iterable[bytes]:
    connection: socket.socket = request["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    connection.shutdown(socket.SHUT_RDWR)
    connection.close()
    raise ConnectionResetError
