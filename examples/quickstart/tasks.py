"""The smallest program: one task. Run a worker for it with ``celeriac -A tasks worker -l info``."""

from celeriac import Celeriac

app = Celeriac("tasks")  # embedded default: sqlite:///celeriac.db, broker and results


@app.task(bind=True, max_retries=3)
def div(self, x: float, y: float) -> float:
    try:
        return x / y
    except ZeroDivisionError as exc:
        raise self.retry(exc=exc, countdown=5) from exc
