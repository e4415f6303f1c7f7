"""What settings tell a broker and a result backend."""

from __future__ import annotations

from celeriac.opening import backend_options, broker_options
from celeriac.settings import Settings


def test_a_broker_is_told_deadline_lease_and_its_own_options() -> None:
    options = broker_options(
        Settings(broker_publish_timeout=3, worker_lease=7, broker_transport_options={"a": 1})
    )
    assert (options.publish_timeout, options.lease, options.transport) == (3, 7, {"a": 1})


def test_a_backend_is_told_what_somebody_set_of_its_kind() -> None:
    settings = Settings(
        result_serializer="json",
        database_table_names={"task": "mine"},
        task_default_queue="not for it",
        result_backend_transport_options={"b": 2},
    )
    options = backend_options(settings)
    assert options.transport == {
        "result_serializer": "json",
        "database_table_names": {"task": "mine"},
        "b": 2,
    }
    assert options.expires == 86400


def test_results_without_expiry_are_kept() -> None:
    assert backend_options(Settings(result_expires=0)).expires is None
    assert backend_options(Settings(result_expires=None)).expires is None
