"""What a caller does: run this in the folder of a worker, ``python call.py``."""

from uuid import uuid4

from tasks import app, div

# Hand over a call; wait for its result.
r = div.delay(1, 3)
print("handed over", r.id, r.status)
print("1 / 3 =", r.get(timeout=10))
print(r.status, r.ready(), r.successful(), r.traceback, r.get(propagate=False))

# Any worker that consumes the queue "web" may have this in ten seconds, none after a minute.
later = div.apply_async(
    (1, 2), countdown=10, expires=60, priority=5, queue="web", task_id=str(uuid4()), ignore_result=True
)
print("handed over", later.id, "for later")

# By name: the caller does not need the code.
print("2 / 2 =", app.send_task("tasks.div", args=[2, 2]).get(timeout=10))

# By id: whoever knows it can ask for the result.
print("1 / 3 =", div.AsyncResult(r.id).get())

# A task is still a function.
print("4 / 2 =", div(4, 2))
