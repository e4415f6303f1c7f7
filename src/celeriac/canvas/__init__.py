"""Calls as values: signatures, and what they combine to."""

from celeriac.canvas.chain import Chain, chain
from celeriac.canvas.plan import Plan, plan
from celeriac.canvas.signature import Signature, maybe_signature, signature

#: Celery's older name.
subtask = signature

__all__ = ["Chain", "Plan", "Signature", "chain", "maybe_signature", "plan", "signature", "subtask"]
