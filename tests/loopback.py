"""Services on loopback, and alpaca-py imported without its one warning."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import uvicorn
from fastapi import FastAPI

with warnings.catch_warnings():
    # alpaca-py imports websockets.legacy, which warns once, when first imported.
    warnings.filterwarnings("ignore", r"websockets\.legacy is deprecated", DeprecationWarning)
    import alpaca.trading.client  # noqa: F401


@contextmanager
def served(*services: FastAPI) -> Iterator[list[str]]:
    """Serves apps on free loopback ports; yields their URLs."""
    running, urls = [], []
    with ExitStack() as stack:
        for service in services:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            config = uvicorn.Config(service, log_level="critical", ws="none", lifespan="off")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            running.append((server, thread))
            urls.append(f"http://127.0.0.1:{listener.getsockname()[1]}")
        while not all(server.started for server, _ in running):
            time.sleep(0.005)
        yield urls
        for server, _ in running:
            server.should_exit = True
        for _, thread in running:
            thread.join(5)
