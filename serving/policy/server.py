"""The policy server on this machine: a Ray cluster and a Serve application that live and die with this process."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import threading
from pathlib import Path

APP_NAME = "swing-policy"


def serve(bundle: Path, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serves `bundle` until SIGINT or SIGTERM; prints one JSON line with the URL when it is ready.

    With RAY_ADDRESS set it joins that cluster, under that cluster's own authentication.

    Raises:
        BundleError: The bundle does not verify.
        LiveError: No token in the environment.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        _close_to_strangers()
    import ray  # noqa: PLC0415  (reads the environment when it is imported)
    from ray import serve as ray_serve  # noqa: PLC0415

    from serving.policy.app import build  # noqa: PLC0415

    application = build({"bundle": str(bundle)})
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, **local)
    try:
        ray_serve.start(http_options={"host": host, "port": port})
        ray_serve.run(application, name=APP_NAME, route_prefix="/")
        sys.stdout.write(json.dumps({"url": f"http://{host}:{port}", "bundle": str(bundle)}) + "\n")
        sys.stdout.flush()
        stop.wait()
    finally:
        ray_serve.shutdown()
        ray.shutdown()


def _close_to_strangers() -> None:
    """Keeps the local cluster on loopback, and gives it a secret for the one port that Ray opens to all.

    Ray turns 127.0.0.1 into the machine's outer address unless told otherwise (ray#26293), and a Serve
    replica listens for its peers on all interfaces whatever the host.
    """
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
