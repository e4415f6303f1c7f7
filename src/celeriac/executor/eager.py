"""Eager mode: a call runs here and now, through the same bytes and the same `invoke` as in a worker."""

from __future__ import annotations

import socket
from contextlib import nullcontext
from typing import TYPE_CHECKING

from celeriac.executor.invoke import Finished, invoke
from celeriac.states import RETRY
from celeriac.wire.disposition import Defer
from celeriac.wire.envelope import Envelope
from celeriac.wire.frames import Call, Update

if TYPE_CHECKING:
    from celeriac.app import Celeriac

__all__ = ["run_eagerly"]


def run_eagerly(app: Celeriac, envelope: Envelope) -> Finished:
    """Run a message to its end: retries follow at once, then whatever it publishes, depth first.

    Returns how the last try ended. Records are stored with ``task_store_eager_result`` only.
    """
    store = app.conf.task_store_eager_result

    def emit(update: Update) -> None:
        if store:
            app.backend.put([update.record])

    hostname = socket.gethostname()
    while True:
        call = Call(0, envelope, "")
        finished = invoke(app, call, hostname=hostname, guard=nullcontext, emit=emit, eager=True)
        outcome = finished.outcome
        if store and outcome.record is not None:
            app.backend.put([outcome.record])
        if outcome.state != RETRY:
            break
        # A retry is the message that replaces this one, or one to another queue: eagerly there are no queues.
        match outcome.disposition:
            case Defer(envelope=Envelope() as again):
                envelope = again
            case _:
                envelope = outcome.follow[0].envelope
    for outgoing in outcome.follow:
        run_eagerly(app, outgoing.envelope)
    return finished
