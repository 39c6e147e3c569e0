"""Images are looked at and decoded in threads: in order, a little ahead, with progress, and stopped at any moment.

The libraries that decode give other threads the processor meanwhile. Training batches are read ahead by `loaders`.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Seconds that an item takes at least for threads to pay: below it they wait for Python's lock more than they gain.
WORTH_A_THREAD = 5e-5


def in_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    num_workers: int,
    doing: str,
    at_once: int = 1,
    delay: float = 2,
    initial: int = 0,
) -> Generator[Result, None, None]:
    """Yield `function(item)` in order, computed in threads, a little ahead, and show progress.

    Closing the generator cancels what no thread has begun.

    Args:
        doing: what the progress bar says. delay: seconds after which it is shown.
        at_once: items that a thread is given, more than one where each may take less time than handing it over. Then
            the caller's own thread computes them for as long as they take less than `WORTH_A_THREAD`; where they take
            more, threads are given some and it tries again.
        initial: how many more were done before, for the progress bar.
    """
    executor = ThreadPoolExecutor(num_workers)
    ahead: deque[Future[list[Result]]] = deque()
    starts = deque(range(0, len(items), at_once))

    def several(start: int) -> list[Result]:
        return [function(item) for item in items[start : start + at_once]]

    shown_every = 0.2 if os.isatty(2) else 10
    total = initial + len(items)
    try:
        with tqdm(total=total, initial=initial, desc=doing, unit="image", delay=delay, mininterval=shown_every) as bar:
            to_threads = len(items) if at_once == 1 else 0
            while starts or ahead:
                while starts and to_threads and len(ahead) <= 4 * num_workers:
                    ahead.append(executor.submit(several, starts.popleft()))
                    to_threads -= 1
                if ahead:
                    done = ahead.popleft().result()
                else:
                    began = time.perf_counter()
                    done = several(starts.popleft())
                    if time.perf_counter() - began > WORTH_A_THREAD * len(done):
                        to_threads = 32 * num_workers
                yield from done
                bar.update(len(done))
    finally:
        executor.shutdown(cancel_futures=True)
