"""Keeps what passes through the scheduler from staying there.

Dask keeps the last events of every topic, and every topic for ever: one for each client and each worker that there ever was. Its
public API can empty a topic, but not remove it. So this reaches for Dask's own table of topics. Where a version of Dask has none,
nothing is removed; the test that counts what is left would fail.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from distributed import SchedulerPlugin

from .tasks import topic_of

if TYPE_CHECKING:
    from distributed import Scheduler


class Forgetting(SchedulerPlugin):
    """Removes events as soon as they have been passed on, and topics when their client or worker is gone."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        broker = getattr(scheduler, "_broker", None)
        self._topics: MutableMapping[str, Any] = getattr(broker, "_topics", {})

    def log_event(self, topic: str, msg: Any) -> None:
        """Called when an event has been passed on to those who want it."""
        own = topic.startswith(topic_of(""))
        client = topic.removeprefix(topic_of("")) if own else topic
        if client in self._scheduler.clients:
            if own:
                found = self._topics.get(topic)
                if found is not None:
                    found.truncate()
        elif own or (isinstance(msg, dict) and msg.get("client") == client):  # the latter when it is removed a second time
            self._topics.pop(topic, None)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        for topic in (client, topic_of(client)):
            self._topics.pop(topic, None)

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        self._topics.pop(worker, None)
