"""Functions over items in threads: the order, errors, and who computes what."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kgl.data.in_order import Task, map_in_order


@pytest.fixture
def busy_pool():
    """A pool of one thread, which is held until the event is set."""
    pool, held = ThreadPoolExecutor(1), threading.Event()
    pool.submit(held.wait)
    yield pool, held
    held.set()
    pool.shutdown()


def whose(number: int) -> tuple[int, bool]:
    if number == 5:
        raise ValueError("the fifth")
    return number, threading.current_thread() is threading.main_thread()


def test_thread_that_waits_computes_what_no_other_has_begun(busy_pool):
    pool, _ = busy_pool
    assert list(map_in_order(pool, whose, range(5), ahead=2)) == [(number, True) for number in range(5)]


def test_it_takes_the_last_ones_while_the_first_is_computed():
    begun, held, taken = threading.Event(), threading.Event(), []

    def hold():
        begun.set()
        return held.wait(20)

    def take(number):
        taken.append(number)
        if len(taken) == 3:
            held.set()

    with ThreadPoolExecutor(1) as pool:
        first = Task(pool, hold)
        others = [Task(pool, take, number) for number in range(5)]
        assert begun.wait(20) and first.result(others)
    assert taken[:3] == [4, 3, 2]


def test_error_is_raised_when_its_turn_has_come(busy_pool):
    pool, _ = busy_pool
    results = map_in_order(pool, whose, range(8), ahead=7)
    assert [next(results)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="the fifth"):
        next(results)


def test_nothing_is_computed_twice():
    counts = [0] * 200

    def count(number):
        counts[number] += 1
        return number

    with ThreadPoolExecutor(3) as pool:
        assert list(map_in_order(pool, count, range(200), ahead=10)) == list(range(200))
    assert counts == [1] * 200
