"""The worker that a node runs, and the scheduler that the cluster has one of."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from diskhaul.cancellation import CancellationToken
from diskhaul.errors import OperationFailedError
from diskhaul.model import Node

from . import tasks
from .engine import Place, disconnect
from .forgetting import Forgetting
from .settings import DaskSettings

BRIEF_PLACES = 8
"""How many brief functions a node runs at once, besides its operations."""
CONTROL_PLACES = 1
"""How many functions at once stop others; each takes no time."""
_STOP_S = 60.0
_LEAST_SILENCE_S = 5.0  # workers are heard of every half second or so, unless they are busy
_ANSWERS_S = 0.5  # for the last answers to leave
_POLL_S = 0.2
_NOBODYS_PORT = "127.0.0.1:0"
_PAUSES_S = (0.5, 1.0, 2.0, 5.0)

CONFIGURATION = {
    "distributed.scheduler.allowed-failures": 0,  # what a dead worker was doing is not begun again by itself
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.http.routes": [],  # what Dask shows over HTTP is for anybody who asks
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.comm.timeouts.connect": "10s",
    "distributed.admin.tick.limit": "30s",
}
"""Dask's own settings, as this engine needs them."""


def serve(settings: DaskSettings, node: Node, *, token: CancellationToken, tell: Callable[[str], object]) -> None:
    """Be the worker of `node` until `token` is cancelled; a scheduler that is not there is waited for."""
    tasks.RUNNING.admit()
    try:
        _run(_work(settings, node, token, tell), settings)
    finally:
        disconnect()


def serve_scheduler(settings: DaskSettings, *, token: CancellationToken, tell: Callable[[str], object]) -> None:
    """Be the cluster's scheduler until `token` is cancelled.

    Raises:
        OperationFailedError: it cannot listen.
    """
    try:
        _run(_schedule(settings, token, tell), settings)
    except (OSError, ValueError) as error:
        raise OperationFailedError(f"the scheduler cannot listen at {settings.scheduler}: {error}") from error


def _run(work: Coroutine[Any, Any, None], settings: DaskSettings) -> None:
    import dask

    logging.getLogger("distributed").setLevel(logging.ERROR)
    silence = {"distributed.scheduler.worker-ttl": f"{max(settings.node_timeout_s, _LEAST_SILENCE_S)} s"}
    with dask.config.set(CONFIGURATION | silence):
        asyncio.run(work)


async def _work(settings: DaskSettings, node: Node, token: CancellationToken, tell: Callable[[str], object]) -> None:
    from distributed import Worker

    tried = 0
    places = {Place.OPERATION: settings.slots, Place.BRIEF: BRIEF_PLACES, Place.CONTROL: CONTROL_PLACES}
    resources: dict[str, float] = {place.on(node.name): number for place, number in places.items()}
    with tempfile.TemporaryDirectory(prefix="diskhaul-node-") as scratch:
        while not token.cancelled:
            try:
                async with Worker(
                    settings.scheduler,
                    nthreads=sum(places.values()),
                    resources=resources,
                    plugins=(tasks.Unwanted(),),
                    extensions={},
                    security=settings.security(),
                    memory_limit=0,
                    local_directory=scratch,
                    dashboard=False,
                    dashboard_address=_NOBODYS_PORT,
                    host=node.options.get("dask_host"),
                    death_timeout=10,
                ) as worker:
                    tried = 0
                    tell(f"node {node.name}: at work, for the scheduler {settings.scheduler}")
                    await _until(token, worker.finished())
                    if token.cancelled:
                        await _stop_running(node, tell)  # while answers can still be sent
            except Exception as error:  # whatever it is, the node goes on trying
                tell(f"node {node.name}: no scheduler at {settings.scheduler}: {type(error).__name__}: {error}")
            if not token.cancelled:
                tell(f"node {node.name}: without scheduler; trying again")
                await _until(token, asyncio.sleep(_PAUSES_S[min(tried, len(_PAUSES_S) - 1)]))
                tried += 1


async def _stop_running(node: Node, tell: Callable[[str], object]) -> None:
    tell(f"node {node.name}: stopping")
    loop = asyncio.get_running_loop()
    ended = await loop.run_in_executor(None, lambda: tasks.RUNNING.cancel_all("the node is being stopped", wait_s=_STOP_S))
    if not ended:
        tell(f"node {node.name}: something still runs after {_STOP_S:.0f} s, and is left to 'diskhaul recover'")
    await asyncio.sleep(_ANSWERS_S)


async def _schedule(settings: DaskSettings, token: CancellationToken, tell: Callable[[str], object]) -> None:
    from distributed import Scheduler

    protocol, _, rest = settings.scheduler.partition("://")
    host, _, port = rest.rpartition(":")
    with tempfile.TemporaryDirectory(prefix="diskhaul-node-") as scratch:
        async with Scheduler(
            protocol=f"{protocol}://",
            host=host.strip("[]"),
            port=int(port),
            security=settings.security(),
            extensions={},  # what Dask can do besides running functions; "spans" keeps notes of all that ever ran
            local_directory=scratch,
            dashboard=False,
            dashboard_address=_NOBODYS_PORT,
        ) as scheduler:
            scheduler.add_plugin(Forgetting(scheduler))
            tell(f"scheduler: listening at {scheduler.address}")
            await _until(token, scheduler.finished())


async def _until(token: CancellationToken, other: Awaitable[Any]) -> None:
    """Wait for `other`, or for the token to be cancelled."""
    waiting = asyncio.ensure_future(other)
    while not token.cancelled and not waiting.done():
        await asyncio.wait([waiting], timeout=_POLL_S)
    if not waiting.done():
        waiting.cancel()
