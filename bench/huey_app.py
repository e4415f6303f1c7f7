"""The same task on Huey with its SQLite storage; imported in the environment that `peers` makes."""

import time

from huey import SqliteHuey

huey = SqliteHuey(filename="huey.db")


@huey.task()
def noop() -> int:
    return 1


def enqueue(count: int) -> None:
    """Print how many calls a second are handed over."""
    started = time.perf_counter()
    for _ in range(count):
        noop()
    print(count / (time.perf_counter() - started))
