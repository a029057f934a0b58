"""An S3 server on the loopback whose network is bad: errors, cut-off answers, and pauses, at given rates."""

import logging
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import requests
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

logging.getLogger("werkzeug").setLevel(logging.ERROR)

KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}  # moto takes any


@dataclass
class Network:
    """How bad it is. Faults hit reads of shards (GET of a key that ends in .tar).

    Attributes:
        errors: fraction of reads that are answered with "503 Slow Down".
        cuts: fraction whose answer ends in the middle.
        stalls: fraction whose answer does not come for ``stall`` seconds.
        stall: seconds.
        latency: seconds before every answer.
        gone: keys that are never answered but with an error.
        requests: how many there were, by method and by fault.
    """

    errors: float = 0.0
    cuts: float = 0.0
    stalls: float = 0.0
    stall: float = 5.0
    latency: float = 0.0
    gone: set[str] = field(default_factory=set)
    requests: Counter = field(default_factory=Counter)


class BadS3:
    """moto's server behind a proxy that does as ``network`` says.

    Attributes:
        network: may be changed at any time.
        url: of the proxy.
    """

    def __init__(self) -> None:
        self.network = Network()
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        host, port = self._moto.get_host_and_port()
        self._behind = f"http://{host}:{port}"
        self._random, self._session = random.Random(0), requests.Session()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                outer._answer(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

            def log_message(self, *args: object) -> None:
                pass

        class Proxy(ThreadingHTTPServer):
            def handle_error(self, *args: object) -> None:
                if not isinstance(sys.exc_info()[1], ConnectionError):  # such as of a client that was killed
                    super().handle_error(*args)

        self._proxy = Proxy(("127.0.0.1", 0), Handler)
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._proxy.server_address[1]}"

    def client(self) -> object:
        """boto3's client of the server itself, without faults."""
        return boto3.client("s3", endpoint_url=self._behind, region_name="us-east-1", **KEYS)

    def options(self) -> dict:
        """What ``StorageConfig`` needs to reach it."""
        client = {"region_name": "us-east-1"}
        # s3fs and botocore would try again on their own; what is tested is what this project does.
        config = {"retries": {"max_attempts": 0}}
        return {
            "key": "testing", "secret": "testing", "endpoint_url": self.url, "client_kwargs": client,
            "config_kwargs": config, "skip_instance_cache": False,
        }  # fmt: skip

    def close(self) -> None:
        """Stop both; fsspec would give a later test, which finds its server by the environment, this connection."""
        S3FileSystem.clear_instance_cache()
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stop()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        network = self.network
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        key = request.path.split("?")[0]
        fault = ""
        with self._lock:
            draw = self._random.random()
        if request.command == "GET" and key.endswith(".tar"):
            for name, rate in (("errors", network.errors), ("cuts", network.cuts), ("stalls", network.stalls)):
                if 0 <= draw < rate:
                    fault = name
                draw -= rate
            if any(key.endswith(name) for name in network.gone):
                fault = "errors"
        with self._lock:
            network.requests[request.command] += 1
            network.requests[fault] += 1
        time.sleep(network.latency + (network.stall if fault == "stalls" else 0))
        if fault == "errors":
            request.send_response(503, "Slow Down")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "accept-encoding")}
        answer = requests.request(
            request.command, self._behind + request.path, headers=headers | {"Accept-Encoding": "identity"},
            data=body, timeout=30,
        )  # fmt: skip
        request.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                request.send_header(name, value)
        length = answer.headers.get("Content-Length", len(answer.content))
        request.send_header("Content-Length", str(length))
        request.end_headers()
        if request.command != "HEAD":
            if fault == "cuts":
                request.wfile.write(answer.content[: len(answer.content) // 2])
                request.close_connection = True
            else:
                request.wfile.write(answer.content)
