"""Answers that no client has read."""

import time
from collections.abc import Callable
from typing import Any

import quotas


class UnreadAnswers:
    """
    What Gradio keeps of pages that wait for nothing, dropped after a while.

    Gradio keeps the answers of a client that left before it read them until 2,000 other pages have come, which is
    gigabytes if each is of the most images at once, and an entry for every page ever opened.

    Args:
        queue: of the page, a `gradio.queueing.Queue`.
        clock: in seconds.
    """

    def __init__(self, queue: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue, self._clock = queue, clock
        self._idle: dict[str, tuple[frozenset[str], float]] = {}  # the requests of an idle page, and since when

    def drop(self) -> None:
        """Drop what has waited for `quotas.ANSWER_SECONDS`; called by the server's event loop, never by a thread."""
        now, queue = self._clock(), self._queue
        busy = {event.session_hash for event in queue.event_ids_to_events.values()}
        idle = (queue.pending_messages_per_session.keys() | queue.pending_event_ids_session.keys()) - busy
        before, self._idle = self._idle, {}
        for page in idle:
            requests = frozenset(queue.pending_event_ids_session.get(page, ()))
            known, since = before.get(page, (None, now))
            if known != requests:  # it was busy in between
                since = now
            if since + quotas.ANSWER_SECONDS <= now:
                queue.pending_messages_per_session.pop(page, None)
                queue.pending_event_ids_session.pop(page, None)
            else:
                self._idle[page] = (requests, since)
