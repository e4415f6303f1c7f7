"""A client of one side as a long-running program: takes commands on stdin and answers on stdout, a line each.

The same text for both sides, run by the Python of that side's environment: what differs between the two is the
`App` of `interop_tasks`. Lines hold pickles in base64, so that tuples, bytes and instants stay what they are; they
come from the tests alone.
"""

import base64
import builtins
import pickle
import sys
import time
import traceback
from datetime import UTC, datetime

import interop_tasks
from interop_tasks import KIND, LIBRARY, app

if LIBRARY == "celery":
    from celery.exceptions import TimeoutError as ResultTimeout
else:
    from celeriac.errors import TimeoutError as ResultTimeout


def signature(described):
    """``{"task", "args", "kwargs", "options", "immutable"}`` as a signature of this side."""
    return app.signature(
        f"interop_tasks.{described['task']}",
        args=described.get("args", ()),
        kwargs=described.get("kwargs", {}),
        options=described.get("options", {}),
        immutable=described.get("immutable", False),
    )


def built(options):
    made = dict(options)
    for name in ("link", "link_error"):
        if name in made:
            made[name] = [signature(each) for each in made[name]]
    return made


def call(task, args=(), kwargs=None, **options):
    """Call a task object of the module."""
    return getattr(interop_tasks, task).apply_async(args, kwargs or {}, **built(options)).id


def send(task, args=(), kwargs=None, **options):
    """Call by name, as a program that has no such task."""
    name = task if "." in task else f"interop_tasks.{task}"
    return app.send_task(name, args, kwargs or {}, **built(options)).id


def call_many(task, argument_lists, **options):
    for args in argument_lists:
        getattr(interop_tasks, task).apply_async(args, **options)


def chain(*steps, **options):
    """Send a chain; gives the ids of its tasks in order."""
    whole = signature(steps[0])
    for each in steps[1:]:
        whole |= signature(each)
    result = whole.apply_async(**built(options))
    ids = []
    while result is not None:
        ids.insert(0, result.id)
        result = result.parent
    return ids


def get(task_id, timeout=15.0):
    try:
        return {"value": app.AsyncResult(task_id).get(timeout=timeout)}
    except ResultTimeout:
        raise
    except BaseException as exc:
        return {"raised": exception(exc)}


LIBRARIES = ("celery", "celeriac", "kombu", "billiard")


def exception(exc):
    """What can be told of an exception. One of the library's own is another class on either side, of the same name."""
    cls = type(exc)
    told = {"class": f"{cls.__module__}.{cls.__qualname__}", "args": list(exc.args), "text": str(exc)}
    if cls.__module__.split(".")[0] in LIBRARIES:
        own_words = cls.__name__.endswith("TimeLimitExceeded")
        return {**told, "class": f"library.{cls.__qualname__}", "text": None if own_words else str(exc)}
    known = (*vars(builtins).values(), *vars(interop_tasks).values(), interop_tasks.Outer.NestedError)
    return {**told, "same": cls in known, "bases": [each.__name__ for each in cls.__mro__]}


def look(task_id):
    """All that a result object says without waiting."""
    result = app.AsyncResult(task_id)
    value = result.result
    fields = ("state", "traceback", "name", "args", "kwargs", "worker", "queue")
    return {
        "retries": result.retries or 0,
        "date_done": result.date_done and result.date_done.isoformat(),
        **{field: getattr(result, field) for field in fields},
        "result": exception(value) if isinstance(value, BaseException) else value,
        # of a task that has not ended Celery gives the children as they are stored
        "children": [each.id for each in result.children]
        if result.ready() and result.children is not None
        else None,
        "ready": result.ready(),
        "successful": result.successful(),
        "failed": result.failed(),
    }


def forget(task_id):
    app.AsyncResult(task_id).forget()


def purge(queue):
    """Delete what waits in a queue; gives how many."""
    if LIBRARY != "celery":
        return app.broker.purge(queue)
    with app.connection_for_write() as connection:
        return connection.default_channel.queue_purge(queue)


def know_exchange(queue):
    """Make the exchange of a `Broadcast` known, which a client of Celery on Redis otherwise takes for a direct one."""
    if LIBRARY == "celery":
        with app.producer_or_acquire() as producer:
            app.amqp.queues[queue].exchange(producer.channel).declare()


def store(task_id, value, state="SUCCESS", error=None, traceback=None):
    """Have the result backend of this side keep a value, or an exception of this name and arguments."""
    if error is not None:
        cls = getattr(interop_tasks, error, None) or getattr(builtins, error)
        value = cls(*value)
    if LIBRARY == "celery":
        app.backend.store_result(task_id, value, state, traceback=traceback)
        return
    from celeriac.states import READY_STATES
    from celeriac.wire import codecs, errors
    from celeriac.wire.record import Record

    codec = app.conf.result_serializer
    if isinstance(value, BaseException):
        value = errors.to_meta(value, codec)
    record = Record(
        task_id=task_id,
        state=state,
        result=codecs.dumps(value, codec),
        codec=codec,
        traceback=traceback,
        date_done=datetime.now(UTC) if state in READY_STATES else None,
    )
    app.backend.put([record])


def configure(**settings):
    app.conf.update(settings)
    if LIBRARY == "celery":
        vars(app).pop("amqp", None)  # where it keeps some of them


def ping():
    return KIND


COMMANDS = {
    each.__name__: each
    for each in (
        *(call, send, call_many, chain, get, look, forget, purge, know_exchange, store, configure, ping),
    )
}


def main():
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever is printed is no answer
    for line in sys.stdin:
        name, args, kwargs = pickle.loads(base64.b64decode(line))
        started = time.monotonic()
        try:
            answer = (True, COMMANDS[name](*args, **kwargs))
        except Exception:
            answer = (False, f"{traceback.format_exc()}after {time.monotonic() - started:.2f} s")
        answers.write(base64.b64encode(pickle.dumps(answer)).decode() + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
