"""The app of the interoperability tests: one text, run as an app of Celery or of celeriac.

Runs in both virtual environments, so it imports of either side only what `INTEROP_LIBRARY` says; `INTEROP_KIND` is
the name of the part it plays. `INTEROP_SETTINGS` (JSON) holds the settings, `INTEROP_PREFIX` the beginning of every
queue's name, `INTEROP_QUEUE_ARGUMENTS` (JSON) the arguments of most of them, `INTEROP_NOTES` the URL of the Redis
database in which tasks note what they did.

Retries are 0.1 s apart: Celery stores RETRY after it has sent the next try, and may overwrite that one's SUCCESS.
"""

import builtins
import json
import os
import time

import redis

LIBRARY = os.environ["INTEROP_LIBRARY"]
KIND = os.environ["INTEROP_KIND"]
PREFIX = os.environ["INTEROP_PREFIX"]

if LIBRARY == "celery":
    from celery import Celery as App
    from celery.exceptions import Ignore, Reject
    from kombu import Exchange, Queue
    from kombu.common import Broadcast
else:
    from celeriac import Celeriac as App
    from celeriac.errors import Ignore, Reject
    from celeriac.topology import Broadcast, Exchange, Queue

FLEETS = ("celery", "celeriac")

app = App("interop_tasks", set_as_current=True)
app.conf.update(json.loads(os.environ["INTEROP_SETTINGS"]))

topic, fan = Exchange(f"{PREFIX}.topic", "topic"), Exchange(f"{PREFIX}.fan", "fanout")
kept = {"queue_arguments": json.loads(os.environ["INTEROP_QUEUE_ARGUMENTS"])}
app.conf.task_queues = [
    Queue(f"{PREFIX}.both", **kept),
    Broadcast(f"{PREFIX}.everyone"),
    *(Queue(f"{PREFIX}.{each}", **kept) for each in FLEETS),
    *(Queue(f"{PREFIX}.topic.{each}", topic, routing_key=f"to.{each}.#", **kept) for each in FLEETS),
    *(Queue(f"{PREFIX}.all.{each}", topic, routing_key="to.*", **kept) for each in FLEETS),
    *(Queue(f"{PREFIX}.fan.{each}", fan) for each in FLEETS),
    *(Queue(f"{PREFIX}.urgent.{each}", max_priority=10) for each in FLEETS),
]
app.conf.task_routes = {
    "interop_tasks.routed_*": {"queue": f"{PREFIX}.topic.celery", "routing_key": "to.celery.x"}
}

notes = redis.Redis.from_url(os.environ["INTEROP_NOTES"], decode_responses=True)


class OwnError(Exception):
    """An exception of the user's, with arguments."""


class Outer:
    class NestedError(OwnError):
        """One whose qualified name has a dot."""


class PickyError(Exception):
    """An exception whose constructor does not take its own `args`."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def note(key, *words):
    """Append a line, which begins with the kind of worker that runs this."""
    notes.rpush(f"{PREFIX}.notes.{key}", " ".join([KIND, *map(str, words)]))


@app.task
def add(x, y):
    return x + y


@app.task
def echo(*args, **kwargs):
    return [list(args), kwargs]


@app.task
def types_of(*args):
    return [type(each).__name__ for each in args]


@app.task
def when():
    """The instant at which it runs, and where."""
    return [KIND, time.time()]


@app.task
def writes(key, *words):
    note(key, *words)
    return key


@app.task(ignore_result=True)
def silent(key):
    note(key)
    return key


@app.task
def done(key, number, pause=0.0):
    """Count how often each number was done, and by whom."""
    time.sleep(pause)
    pipe = notes.pipeline()
    pipe.hincrby(f"{PREFIX}.done.{key}", str(number), 1)
    pipe.hincrby(f"{PREFIX}.by.{key}", KIND, 1)
    pipe.execute()


@app.task(bind=True)
def describe(self):
    """What the request knows."""
    request = self.request
    plain = (
        *("id", "root_id", "parent_id", "correlation_id", "group", "group_index", "retries", "timelimit"),
        *("shadow", "origin", "reply_to", "ignore_result", "args", "kwargs", "stamps", "stamped_headers"),
        *("replaced_task_nesting", "called_directly", "is_eager", "headers", "eta", "expires", "chain"),
    )
    found = {name: getattr(request, name) for name in plain}
    found["delivery_info"] = {
        k: request.delivery_info.get(k) for k in ("exchange", "routing_key", "priority")
    }
    found["redelivered"] = bool(request.delivery_info.get("redelivered"))
    found["kind"] = KIND
    found["task"] = self.name
    found["tenant"] = request.get("tenant")
    return found


@app.task(bind=True)
def describe_then(self, x=None):
    """A step of a chain that tells of itself in a note."""
    request = self.request
    note(request.root_id, json.dumps([request.id, request.parent_id, request.reply_to, request.origin, x]))
    return KIND


@app.task
def fail(name, *args):
    """Raise an exception: of the builtins, or one of those above."""
    raise {**vars(builtins), **globals(), "NestedError": Outer.NestedError}[name](*args)


@app.task(bind=True, max_retries=None)
def retry_times(self, times):
    """Run again so many times, wherever."""
    note(self.request.id, self.request.retries, self.request.parent_id, self.request.root_id)
    if self.request.retries < times:
        raise self.retry(countdown=0.1)
    return self.request.retries


@app.task(bind=True, max_retries=5)
def retry_at(self, queues, pause=0.1):
    """Run once more on each of these queues."""
    note(
        self.request.id,
        self.request.retries,
        self.request.parent_id,
        json.dumps(self.request.headers, default=str),
    )
    if queues:
        raise self.retry(args=(queues[1:], pause), queue=queues[0], countdown=pause)
    return [KIND, self.request.retries]


@app.task(bind=True, max_retries=2)
def retry_in_vain(self):
    note(self.request.id, self.request.retries)
    raise self.retry(countdown=0.1, exc=OwnError("never", self.request.retries))


@app.task(bind=True, autoretry_for=(OwnError,), max_retries=2, default_retry_delay=0.1)
def retry_by_itself(self):
    note(self.request.id, self.request.retries)
    if self.request.retries < 2:
        raise OwnError("not yet")
    return self.request.retries


@app.task(bind=True, max_retries=3)
def retry_held(self):
    """Retry far in the future, so that its state is there to be read."""
    raise self.retry(countdown=3600, exc=OwnError("later", 7))


@app.task(bind=True)
def progress(self, gate, meta):
    """Report, and wait to be let go."""
    self.update_state(state="PROGRESS", meta=meta)
    notes.blpop([f"{PREFIX}.gate.{gate}"], timeout=30)
    return "through"


@app.task(acks_late=True)
def reject(key):
    note(key)
    raise Reject("no", requeue=False)


@app.task
def ignore(key):
    note(key)
    raise Ignore


@app.task
def linger(seconds):
    time.sleep(seconds)


@app.task(acks_late=True)
def hold_late(key, gate):
    """Say that it runs, and wait; whoever takes it over after a crash must do it all again."""
    note(key)
    notes.blpop([f"{PREFIX}.gate.{gate}"], timeout=30)
    return KIND


@app.task
def hold(gate):
    notes.blpop([f"{PREFIX}.gate.{gate}"], timeout=30)
    return KIND


@app.task
def errback_old(task_id):
    note(f"errback.{task_id}", "old")


@app.task
def errback_new(request, exc, traceback):
    note(f"errback.{request.id}", "new", type(exc).__name__, bool(traceback))


@app.task
def routed_by_rule():
    return KIND


@app.task(bind=True)
def spawn(self, queue):
    """A task that sends another."""
    return describe.apply_async(queue=queue).id


@app.task
def spawn_for_nobody():
    add.apply_async((1, 1), queue=f"{PREFIX}.nobody")


@app.task
def nothing():
    """Give no value."""
