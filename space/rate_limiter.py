"""Rate limits per client."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

import quotas


class RateLimiter:
    """
    Admit at most `most` units per client in any window of `seconds`.

    Clients without an admission in the last `seconds` are forgotten.
    """

    def __init__(self, most: int, seconds: float = 60, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()  # least recently admitted client first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._times)

    def admit(self, client: str, count: int = 1) -> bool:
        """Charge `count` units to `client` and return True, or return False if that exceeds its limit."""
        with self._lock:
            now = self._clock()
            start = now - self._seconds
            while self._times and next(iter(self._times.values()))[-1] <= start:
                self._times.popitem(last=False)
            times = self._times.get(client, deque())
            while times and times[0] <= start:
                times.popleft()
            if len(times) + count > self._most:
                return False
            times.extend([now] * count)
            self._times[client] = times
            self._times.move_to_end(client)
            if len(self._times) > quotas.MAX_CLIENTS:
                self._times.popitem(last=False)
            return True
