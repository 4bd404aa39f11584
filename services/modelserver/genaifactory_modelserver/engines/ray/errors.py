"""What goes wrong between the model server and replicas on Ray, as our errors."""

from __future__ import annotations

import asyncio
import logging
import re

import grpc.aio

from genaifactory_common import errors
from genaifactory_common.errors import DeadlineExceeded, FactoryError, Internal, Unavailable

logger = logging.getLogger(__name__)


class ReplicaLost(Exception):
    """The replica that had the request is gone, or none could be found."""


def failure(message: str) -> FactoryError:
    """Why no replica could start: the engine's own error, which Ray Serve passes on as the text of a traceback."""
    found = re.findall(r"^genaifactory_common\.errors\.(\w+): (.+)$", message, re.MULTILINE)
    if found:
        name, said = found[-1]
        kind: type[FactoryError] = getattr(errors, name)
        return kind(said)
    logger.error("no replica could start: %s", message)
    return Unavailable("No replica could start; the log says why.")


def translated(error: BaseException) -> BaseException:
    """What to raise for an error that came through Ray."""
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import RayServeException

    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, FactoryError):
        return cause
    if isinstance(error, TimeoutError):
        return DeadlineExceeded("The request took longer than allowed.")
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return error
        return ReplicaLost("it has cancelled the request")
    if isinstance(error, RayTaskError):
        logger.error("unexpected error in a replica", exc_info=error)
        return Internal("The engine made a mistake; the replica's log has the details.")
    if isinstance(error, (RayError, RayServeException, grpc.aio.AioRpcError)):
        return ReplicaLost(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return error
