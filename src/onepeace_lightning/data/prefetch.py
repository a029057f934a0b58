"""Preparing the next batch while a model computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Prepared = TypeVar("Prepared")

WORKERS = 2
"""Threads that prepare; decoders and resizing let go of Python's global lock."""


def ahead(
    batches: Iterable[Sequence[T]],
    prepare: Callable[[T], Prepared],
    pool: Executor | None = None,
) -> Iterator[list[Prepared]]:
    """Prepare every item, the items of one batch in advance of the batch that is handed out.

    ``pool`` are the processes or threads that do it, ``WORKERS`` threads if None; it is shut down at the end.

    An error of ``prepare`` is raised where its batch would have been handed out.
    """
    waiting: deque[list[Future[Prepared]]] = deque()
    with pool or ThreadPoolExecutor(WORKERS, thread_name_prefix="prepare") as pool:
        try:
            for batch in batches:
                waiting.append([pool.submit(prepare, item) for item in batch])
                if len(waiting) > 1:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)
