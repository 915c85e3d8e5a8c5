"""Connection to Ray: the cluster named by RAY_ADDRESS, or a local one on loopback that ends with this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from data_pipeline.errors import RunError

INLINE_BYTES = 2**22
"""Weights and gradients up to this size travel inside requests and answers. Ray's own limit of 100 kB would send them
by way of the object store, which costs its raylet 4 ms of a processor for each gradient.
"""


@contextmanager
def ray_session(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Connects to Ray for the length of the block; nested use keeps the outer connection.

    Args:
        address: Of a running cluster; None: RAY_ADDRESS, else a local cluster is started.
        cpus: Of a local cluster; None: all.

    Raises:
        RunError: The cluster does not answer.
    """
    # Ray would otherwise switch token auth on for some of its clients and not for others.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        # Read when ray is first imported. Otherwise Ray turns 127.0.0.1 into the machine's outer address,
        # and anyone who reaches that may run code (ray#26293).
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray  # noqa: PLC0415

    if ray.is_initialized():
        yield
        return
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                _node_ip_address="127.0.0.1",
                _system_config={"max_direct_call_object_size": INLINE_BYTES},
            )
    except (ConnectionError, RuntimeError) as error:
        raise RunError(f"Ray at {address or 'local'}: {error}; start a head or unset RAY_ADDRESS") from error
    try:
        yield
    finally:
        ray.shutdown()
