"""Speed of celeriac: on the embedded default, and beside Celery on Redis and RabbitMQ.

Prints a table for each, or JSON with ``--json``. Where a server or a driver sets the limit, the same work by hand
stands beside it, measured in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import comparisons
import embedded
import servers
from peers import Huey
from rooms import rabbitmq_room, redis_room
from rounds import Steps, run
from servers import Bench
from sides import celeriac, celery
from table import Comparison, as_plain, show

TABLES = ("embedded", "redis", "rabbitmq")
#: Both, and alone where the other is not there yet.
SIDES = {"celeriac": celeriac, "celery": celery}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, help="how often each is measured (default: 3; quick: 1)")
    parser.add_argument("--only", type=_names(TABLES), default=TABLES, help=f"of {','.join(TABLES)}")
    parser.add_argument("--sides", type=_names(SIDES), default=list(SIDES), help=f"of {','.join(SIDES)}")
    parser.add_argument("--steps", default="", help="only the steps with this in their names")
    parser.add_argument("--quick", action="store_true", help="less of everything, for a first look")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--peers", action="store_true", help="Huey beside the embedded default (installs it)")
    return parser.parse_args()


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not of {', '.join(known)}")
        return names

    return read


def main() -> int:
    options = arguments()
    rounds = options.rounds or (1 if options.quick else 3)
    failures: list[str] = []
    with ExitStack() as stack:
        tables = list(_tables(options, stack))
        for _, steps in tables:
            failures += run({what: step for what, step in steps.items() if options.steps in what}, rounds)
    shown = [comparison for comparison, _ in tables]
    if options.json:
        plain = {each.title: as_plain(each) for each in shown}
        whole = {"machine": machine(), "rounds": rounds, "tables": plain, "failed": failures}
        print(json.dumps(whole, indent=2))
    else:
        print(f"{machine()}; medians of {rounds} rounds")
        for each in shown:
            show(each)
    return 1 if failures else 0


def _tables(options: argparse.Namespace, stack: ExitStack) -> Iterator[tuple[Comparison, Steps]]:
    """The tables that are wanted, and what fills them. Servers are there until `stack` closes."""
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="celeriac-bench-")))
    if "embedded" in options.only:
        peer = Huey(folder / "huey") if options.peers else None
        yield embedded.comparison(embedded.QUICK if options.quick else embedded.FULL, peer)
    if not {"redis", "rabbitmq"} & set(options.only):
        return
    sizes = servers.QUICK if options.quick else servers.FULL
    sides = tuple(SIDES[name]() for name in options.sides)
    redis = stack.enter_context(redis_room())
    if "redis" in options.only:
        yield comparisons.on_redis(Bench(redis, redis, sides, sizes, folder))
    if "rabbitmq" in options.only:
        rabbitmq = stack.enter_context(rabbitmq_room())
        yield comparisons.on_rabbitmq(Bench(rabbitmq, redis, sides, sizes, folder))


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
