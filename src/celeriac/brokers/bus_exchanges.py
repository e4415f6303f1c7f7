"""Which exchange is meant where only its name is known: Celery's names say the type (wire-protocol §3, §10, §11)."""

from __future__ import annotations

from celeriac.topology import Exchange

__all__ = ["exchange_named"]

_MAILBOX = ".pidbox"
_REPLIES = "reply."


def exchange_named(name: str) -> Exchange:
    """Of replies: direct; of remote control: fanout, neither of them durable; of events, or any other: topic.

    The default exchange, whose name is empty, is direct too: its routing keys are names of queues.
    """
    if not name:
        return Exchange()
    if not name.endswith(_MAILBOX):
        return Exchange(name, "topic")
    return Exchange(name, "direct" if name.startswith(_REPLIES) else "fanout", durable=False)
