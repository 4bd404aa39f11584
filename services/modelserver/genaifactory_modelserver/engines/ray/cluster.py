"""This process's connection to a Ray cluster, and the state of the replicas there."""

from __future__ import annotations

import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from genaifactory_common.errors import Unavailable

logger = logging.getLogger(__name__)

DEPLOYMENT = "engine"
"""Of an application: its one deployment."""
_CONNECTIONS_TRIED = 3
_OBJECT_STORE_BYTES = 80 * 2**20  # requests and tokens do not go through it; Ray's minimum


class Cluster:
    """This process's one connection to Ray, for all its engines."""

    def __init__(self) -> None:
        # For all of Ray's blocking calls, one after the other: Serve's cannot stand each other, and none may come
        # after the end.
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray")
        self._members = 0

    def join(self, address: str | None) -> None:
        """Connects, or starts a cluster, unless another engine has. Raises ImportError, Unavailable."""
        if not self._members:
            _connect(address)
        self._members += 1

    def leave(self) -> None:
        """Disconnects when no other engine is left; a cluster that was started here ends."""
        self._members -= 1
        if not self._members:
            import ray

            ray.shutdown()


CLUSTER = Cluster()


def take_signals_back() -> None:
    """Puts Python's own handler of SIGTERM back: Ray's native one writes a stack trace, and aborts 3 s later."""
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGTERM)
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
            signal.siginterrupt(signal.SIGTERM, False)
        signal.alarm(0)  # of a SIGTERM that came before


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # else whatever calls Ray after the end starts a cluster of its own
    import ray
    from ray import serve

    # What Ray logs in this process goes the way of our own log, and only when it is an error.
    for name in ("ray", "ray.serve"):
        log = logging.getLogger(name)
        log.setLevel(logging.ERROR)
        log.handlers.clear()
        log.propagate = True
    local = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES} if address is None else {}
    for left in reversed(range(_CONNECTIONS_TRIED)):
        try:
            # Never on the main thread: there Ray would install a handler of SIGTERM.
            ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **local)
            break
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise Unavailable(
                f"The Ray cluster at {address or 'this machine'} cannot be reached: {error}. "
                "GENAIFACTORY_RAY_ADDRESS must name one that this machine is a node of."
            ) from None
        except Exception as error:  # a bare one: a part of a cluster of our own did not come up in Ray's half a minute
            ray.shutdown()
            if not left:
                raise Unavailable(f"Ray did not start on this machine: {error}") from None
            logger.warning("Ray did not start, and is tried again: %s", error)
    serve.start(proxy_location="Disabled")


def delete(application: str) -> None:
    """Takes the replicas away, each once its requests are finished."""
    from ray import serve

    serve.delete(application)


def handle(application: str) -> Any:
    """The way to the replicas. Their messages go straight over gRPC, not through Ray's object store."""
    from ray import serve

    return serve.get_app_handle(application).options(_by_reference=False)


def status(application: str) -> tuple[str, str, int]:
    """Status of the application ("" when there is none), its message, and how many replicas run."""
    from ray import serve

    found = serve.status().applications.get(application)
    if found is None:
        return "", "", 0
    deployment = found.deployments.get(DEPLOYMENT)
    running = deployment.replica_states.get("RUNNING", 0) if deployment is not None else 0
    message = deployment.message if deployment is not None and deployment.message else found.message
    return found.status.value, message, running
