"""The thread that keeps a worker's leases alive."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from celeriac.brokers.base import Consumer, Delivery
from celeriac.errors import OperationalError

__all__ = ["LeaseKeeper"]

logger = logging.getLogger("celeriac.worker")


class LeaseKeeper:
    """Renews every `interval` seconds, beside whatever fetching and settling do. Tells `lost` what is no longer held.

    A broker that is away is the fetcher's to report.
    """

    def __init__(
        self,
        consumer: Consumer,
        interval: float,
        *,
        lost: Callable[[Sequence[Delivery]], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        self._consumer = consumer
        self._interval = interval
        self._lost = lost
        self._crashed = crashed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="celeriac-lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _main(self) -> None:
        try:
            while not self._stop.wait(self._interval):
                try:
                    lost = self._consumer.renew()
                except OperationalError as exc:
                    logger.debug("cannot renew leases: %s", exc)
                    continue
                if lost:
                    self._lost(lost)
        except BaseException as exc:  # noqa: BLE001 boundary: a bug here must end the worker, not hang it
            self._crashed(exc)
