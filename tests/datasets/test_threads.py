"""Work in threads is in order, a little ahead, and stops when nobody wants the rest."""

import threading
import time

import pytest

from domainbed.datasets.threads import in_threads


@pytest.mark.parametrize("at_once", [1, 7])
def test_results_are_in_order(at_once: int) -> None:
    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number**2

    assert list(in_threads(slow, range(50), 4, "", at_once)) == [number**2 for number in range(50)]


def test_slow_items_leave_the_callers_thread_and_quick_ones_come_back() -> None:
    def here(number: int) -> bool:
        if 20 <= number < 60:
            time.sleep(0.002)
        return threading.current_thread() is threading.main_thread()

    found = list(in_threads(here, range(2000), 2, "", at_once=10))
    assert found[:60] == [True] * 30 + [False] * 30  # that a block is slow is known when it is done
    assert any(found[60:])
    assert not any(in_threads(here, range(20), 2, ""))  # handed over one by one, each is worth it


def test_only_a_few_items_are_begun_ahead() -> None:
    started: list[int] = []
    results = in_threads(lambda i: started.append(i) or i, range(100), 2, "")
    assert next(results) == 0
    time.sleep(0.1)
    assert len(started) <= 10
    results.close()


def test_closing_waits_for_what_is_begun_and_for_nothing_else() -> None:
    started: list[int] = []

    def slow(number: int) -> int:
        started.append(number)
        time.sleep(0.2)
        return number

    results = in_threads(slow, range(100), 2, "")
    assert next(results) == 0
    results.close()
    assert 1 <= len(started) <= 6  # with all that was handed over it would be 9 or more


def test_an_error_of_a_thread_is_raised_where_its_result_is_wanted() -> None:
    results = in_threads(lambda number: 1 / (2 - number), range(5), 2, "")
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)
