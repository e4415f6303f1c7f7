"""The tables of celeriac beside Celery: which rows, from which steps, with which aims (design.md §10, "now")."""

from __future__ import annotations

import raw
from servers import Bench, Steps
from table import Comparison, Row, less

#: Its name in the figures, and in the heading.
CELERY = ("celery", "Celery 5.7")

#: What needs parts of celeriac that are not there yet.
LATER = (
    Row("2,000 tasks of 50 ms that wait", "s", "", comes_with="the pool `threads`"),
    Row("chord of 200", "ms", "", comes_with="chords"),
)


def answers(due: int, *, p50: float | None) -> tuple[Row, ...]:
    """Rows of `Bench.idle` and `Bench.due` that every broker has."""
    return (
        less("call → result, idle worker, p50", "ms", "latency p50", p50),
        less("call → result, idle worker, p99", "ms", "latency p99"),
        less("chain of 50", "ms", "chain", 25),
        less(f"{due:,} due at once: lateness, p99", "ms", "late p99"),
        less(f"{due:,} due at once: lateness of the last", "ms", "late last", 200),
        Row(
            f"{due:,} due at once: the worker grows by",
            "MB",
            "growth",
            aim=1,
            less_is_better=True,
            compared=False,
        ),
        less("spawn → result of the first task", "s", "spawn", 0.4),
        less("idle worker: parent, RSS", "MB", "parent RSS idle", 45),
        less("idle worker: all processes, RSS", "MB", "all RSS idle", 110),
        less("idle worker: all processes, PSS", "MB", "all PSS idle"),
        less("after the drain: parent, RSS", "MB", "parent RSS after the drain", 45),
        less("idle worker: CPU", "% of a core", "idle CPU", 1),
    )


def redis_rows(due: int) -> tuple[Row, ...]:
    return (
        Row("drain, results stored", "/s", "drain stored", "take, store results", aim=30_000),
        Row("drain, no results", "/s", "drain", aim=40_000),
        Row("`delay()` one by one", "/s", "delay", "LPUSH", aim=10_000),
        Row(
            "enqueue in bulk (`app.publish`; Celery: a loop)", "/s", "bulk", "LPUSH in pipelines", aim=50_000
        ),
        *answers(due, p50=0.6),
        less("idle worker: commands of the server a second", "/s", "idle commands", 20),
        less("worker CPU per 1,000 tasks, results stored", "ms", "drain stored: CPU"),
        less("worker CPU per 1,000 tasks, no results", "ms", "drain: CPU"),
        less("round trips per 1,000 tasks, results stored", "", "drain stored: reads"),
        less("round trips per 1,000 tasks, no results", "", "drain: reads"),
        less("server commands per 1,000 tasks, results stored", "", "drain stored: commands"),
        less("server commands per 1,000 tasks, no results", "", "drain: commands"),
        *LATER,
    )


def rabbitmq_rows(due: int) -> tuple[Row, ...]:
    return (
        Row("drain, no results", "/s", "drain", "consume and ack", aim=12_000),
        Row("drain, results in Redis", "/s", "drain stored", "consume and ack", aim=10_000),
        Row("`delay()` one by one, confirmed", "/s", "delay confirmed", "publish, confirmed", aim=2_300),
        Row("`delay()` one by one, not confirmed", "/s", "delay unconfirmed", "publish", aim=12_000),
        Row("enqueue in bulk (`app.publish`; Celery: a loop)", "/s", "bulk", "publish"),
        *answers(due, p50=None),
        less("worker CPU per 1,000 tasks, results in Redis", "ms", "drain stored: CPU"),
        less("worker CPU per 1,000 tasks, no results", "ms", "drain: CPU"),
        *LATER,
    )


def on_redis(bench: Bench) -> tuple[Comparison, Steps]:
    """The table of Redis as broker, and the steps that fill it."""
    stored, silent, delays = bench.stored, bench.silent, bench.sizes.delays
    steps = {
        "Redis by hand": lambda: bench.note_raw(raw.redis_rates),
        **bench.alternate("Redis: delay", lambda side: bench.delay("delay", delays, {}, side)),
        **bench.alternate("Redis: drain, results", lambda side: bench.drain(stored, "drain stored", side)),
        **bench.alternate("Redis: drain", lambda side: bench.drain(silent, "drain", side)),
        **bench.alternate("Redis: an idle worker", bench.idle),
        **bench.alternate("Redis: due at once", bench.due),
    }
    title = f"{bench.redis.version} as broker and result backend"
    return Comparison(title, redis_rows(bench.sizes.due), bench.figures, *CELERY), steps


def on_rabbitmq(bench: Bench) -> tuple[Comparison, Steps]:
    """The table of RabbitMQ as broker, with results in Redis, and the steps that fill it."""
    stored, silent, sizes = bench.stored, bench.silent, bench.sizes
    steps = {
        "RabbitMQ by hand": lambda: bench.note_raw(raw.rabbitmq_rates),
        **bench.alternate(
            "RabbitMQ: delay, confirmed",
            lambda side: bench.delay("delay confirmed", sizes.confirmed, {"confirm_publish": True}, side),
        ),
        **bench.alternate(
            "RabbitMQ: delay, not confirmed",
            lambda side: bench.delay("delay unconfirmed", sizes.delays, {"confirm_publish": False}, side),
        ),
        **bench.alternate("RabbitMQ: drain", lambda side: bench.drain(silent, "drain", side)),
        **bench.alternate("RabbitMQ: drain, results", lambda side: bench.drain(stored, "drain stored", side)),
        **bench.alternate("RabbitMQ: an idle worker", bench.idle),
        **bench.alternate("RabbitMQ: due at once", bench.due),
    }
    title = f"{bench.broker.version} as broker, {bench.redis.version} as result backend"
    return Comparison(title, rabbitmq_rows(sizes.due), bench.figures, *CELERY), steps
