"""Functions over items in threads, with results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")


class Task(Generic[Result]):
    """
    A call that a pool computes, or the thread that needs its result, whichever is first.

    Args:
        pool: of threads.
        function: that is called.
        args: of the call.
    """

    def __init__(self, pool: Executor, function: Callable[..., Result], *args: object) -> None:
        self._function, self._args = function, args
        self._future: Future[Result] = pool.submit(function, *args)

    def take(self) -> bool:
        """Compute the result in this thread, if no thread of the pool has begun; return whether."""
        if not self._future.cancel():
            return False
        self._future = Future()
        try:
            self._future.set_result(self._function(*self._args))
        except Exception as error:
            self._future.set_exception(error)  # raised when the task's turn has come
        return True

    def result(self, others: Sequence[Task[Result]]) -> Result:
        """Return the result, or raise its error; until it is there, take other tasks, the last ones first."""
        if not self.take():
            for other in reversed(others):
                if self._future.done():
                    break
                other.take()
        return self._future.result()


def map_in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """
    Yield `function(item)` in the order of the items, computed up to `ahead` items in advance.

    The pool computes them, and the thread that iterates where it would wait. The error of an item is raised when its
    turn has come, one of the source of items at once.
    """
    waiting: deque[Task[Result]] = deque()
    for item in items:
        waiting.append(Task(pool, function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result(waiting)
    while waiting:
        yield waiting.popleft().result(waiting)


__all__ = ["Task", "map_in_order"]
