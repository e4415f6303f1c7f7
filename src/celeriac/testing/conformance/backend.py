"""What every result backend has to do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.states import FAILURE, RETRY, REVOKED, STARTED, SUCCESS
from celeriac.testing.clock import MovableClock
from celeriac.testing.conformance.harness import InThread, in_fork
from celeriac.testing.conformance.results import as_results, ids, record, states
from celeriac.testing.conformance.watching import WatchTests
from celeriac.wire.record import Group, Record

__all__ = ["BackendConformance"]

DONE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class BackendConformance(WatchTests):
    """The contract of `celeriac.backends.base` as tests. Subclass it in a test module::

    class TestMyBackend(BackendConformance):
        @pytest.fixture
        def server(self, tmp_path):
            return f"my://{tmp_path}/results"

        def open(self, server, options):
            return MyBackend(server, options)
    """

    # -- records ------------------------------------------------------------------------------------------

    def test_a_record_comes_back_as_it_was(self, backend: ResultBackend, other: ResultBackend) -> None:
        sent = record(
            result=b'{"k": "\xc3\xa4"}', state=FAILURE, traceback="Traceback …\nValueError: ü", date_done=DONE
        )
        backend.put([sent])
        [found] = other.get([sent.task_id])
        assert found is not None
        for field in ("task_id", "state", "result", "codec", "traceback", "date_done"):
            assert getattr(found, field) == getattr(sent, field)

    def test_the_extended_fields_come_back_too(self, backend: ResultBackend, other: ResultBackend) -> None:
        if not backend.traits.extended:
            pytest.skip("this backend keeps no extended fields")
        sent = record(
            date_done=DONE,
            retries=2,
            name="tasks.add",
            args=b"[1, 2]",
            kwargs=b'{"x": "y"}',
            worker="w1@host",
            queue="celeriac",
            children=[[["child", None], None]],
            stamps={"k": ["v"]},
        )
        backend.put([sent])
        [found] = other.get([sent.task_id])
        assert found == sent

    @pytest.mark.parametrize("size", [0, 1, 3_000_000])
    def test_results_are_bytes_of_any_kind_and_size(self, backend: ResultBackend, size: int) -> None:
        if backend.traits.opaque:
            sent = record(result=(bytes(range(256)) * (size // 256 + 1))[:size], codec="pickle")
        else:
            sent = record(result=b'"%s"' % (b"x" * size))
        backend.put([sent])
        [found] = backend.get([sent.task_id])
        assert found is not None
        assert found.result == sent.result

    def test_records_come_in_the_order_asked_for(self, backend: ResultBackend) -> None:
        first, second = record(), record()
        backend.put([second, first])
        found = backend.get([first.task_id, "unknown", second.task_id, first.task_id])
        assert ids(found) == [first.task_id, None, second.task_id, first.task_id]

    def test_nothing_to_put_and_nothing_to_get_is_fine(self, backend: ResultBackend) -> None:
        backend.put([])
        assert list(backend.get([])) == []
        backend.forget([])

    def test_many_at_once(self, backend: ResultBackend) -> None:
        records = [record() for _ in range(2500)]
        wanted = [each.task_id for each in records]
        backend.put(records)
        assert ids(backend.get(wanted)) == wanted
        backend.forget(wanted)
        assert set(backend.get(wanted)) == {None}

    def test_the_last_of_one_id_wins(self, backend: ResultBackend) -> None:
        started = record(state=STARTED)
        failed = msgspec.structs.replace(started, state=FAILURE)
        retried = msgspec.structs.replace(started, state=RETRY, retries=1)
        backend.put([started, failed])
        assert states(backend, started.task_id) == [FAILURE]
        backend.put([failed, started, retried])
        assert states(backend, started.task_id) == [RETRY]

    @pytest.mark.parametrize("state", [STARTED, RETRY, FAILURE, REVOKED, SUCCESS, "CUSTOM"])
    def test_success_stays(self, backend: ResultBackend, state: str) -> None:
        success = record(state=SUCCESS, result=b"1")
        later = msgspec.structs.replace(success, state=state, result=b"2")
        backend.put([success])
        backend.put([later])
        [found] = backend.get([success.task_id])
        assert found is not None
        assert (found.state, found.result) == (SUCCESS, b"1")

    def test_success_stays_within_a_batch(self, backend: ResultBackend) -> None:
        success = record(state=SUCCESS)
        backend.put([success, msgspec.structs.replace(success, state=FAILURE)])
        assert states(backend, success.task_id) == [SUCCESS]

    @pytest.mark.parametrize("state", [STARTED, RETRY, REVOKED, SUCCESS, "CUSTOM"])
    def test_a_failure_can_be_followed_by_another_try(self, backend: ResultBackend, state: str) -> None:
        failure = record(state=FAILURE)
        backend.put([failure])
        backend.put([msgspec.structs.replace(failure, state=state)])
        assert states(backend, failure.task_id) == [state]

    def test_a_retry_does_not_go_back_to_an_earlier_try(self, backend: ResultBackend) -> None:
        second = record(state=RETRY, retries=2)
        backend.put([second])
        backend.put([msgspec.structs.replace(second, retries=1), record(second.task_id, state=STARTED)])
        [found] = backend.get([second.task_id])
        assert found is not None
        assert (found.state, found.retries) == (RETRY, 2)
        backend.put([record(second.task_id, state=STARTED, retries=2)])
        assert states(backend, second.task_id) == [STARTED]

    def test_forgotten_records_are_gone(self, backend: ResultBackend, other: ResultBackend) -> None:
        kept, gone = record(), record()
        backend.put([kept, gone])
        other.forget([gone.task_id, "unknown"])
        assert ids(backend.get([kept.task_id, gone.task_id])) == [kept.task_id, None]
        backend.put([msgspec.structs.replace(gone, state=FAILURE)])
        assert states(backend, gone.task_id) == [FAILURE]

    def test_writers_side_by_side_lose_nothing(self, backend: ResultBackend, other: ResultBackend) -> None:
        batches = [[record() for _ in range(20)] for _ in range(40)]
        contested = str(uuid4())

        def write(on: ResultBackend, mine: list[list[Record]]) -> None:
            for batch in mine:
                on.put([*batch, record(contested, state=STARTED)])
            on.put([record(contested)])

        writers = [InThread(partial(write, on, batches[n::4])) for n, on in enumerate([backend, other] * 2)]
        for each in writers:
            each.result()
        wanted = [each.task_id for batch in batches for each in batch]
        assert ids(backend.get(wanted)) == wanted
        assert states(backend, contested) == [SUCCESS]

    def test_a_backend_that_was_closed_can_be_used_again(self, backend: ResultBackend) -> None:
        first, second = record(), record()
        backend.put([first])
        backend.close()
        backend.close()
        backend.put([second])
        assert ids(backend.get([first.task_id, second.task_id])) == [first.task_id, second.task_id]

    @pytest.mark.parametrize("expires", [60.0, None])
    def test_records_live_as_long_as_they_should(
        self, server: Any, clock: MovableClock, expires: float | None
    ) -> None:
        backend = self.open(server, BackendOptions(expires=expires, clock=clock))
        kept = record(date_done=clock.now())
        backend.put([kept])
        for _ in range(59):
            clock.advance(1 if expires else 86_400)
            backend.put([record(date_done=clock.now())])
        assert ids(backend.get([kept.task_id])) == [kept.task_id]
        backend.close()

    def test_a_forked_child_stores_and_the_parent_goes_on(self, backend: ResultBackend) -> None:
        if not backend.traits.persistent:
            pytest.skip("there is nothing to share with a child")
        records = [record() for _ in range(3)]
        backend.put(records[:1])
        in_fork(lambda: backend.put(records[1:2]))
        backend.put(records[2:])
        wanted = [each.task_id for each in records]
        assert ids(backend.get(wanted)) == wanted

    # -- groups and chords --------------------------------------------------------------------------------

    def test_groups_are_kept_replaced_and_forgotten(
        self, backend: ResultBackend, other: ResultBackend
    ) -> None:
        self.needs_groups(backend)
        group = Group(
            group_id=str(uuid4()),
            result=[["g", ["parent", None]], [[["m1", None], None], [["m2", None], None]]],
            date_done=DONE,
        )
        assert backend.load_group(group.group_id) is None
        backend.save_group(group)
        assert other.load_group(group.group_id) == group
        replaced = msgspec.structs.replace(group, result=[["g", None], []])
        backend.save_group(replaced)
        assert other.load_group(group.group_id) == replaced
        other.forget_group(group.group_id)
        other.forget_group(group.group_id)
        assert backend.load_group(group.group_id) is None

    def test_a_chord_is_complete_with_its_last_part(
        self, backend: ResultBackend, other: ResultBackend
    ) -> None:
        self.needs_groups(backend)
        chord, parts = str(uuid4()), [record(result=str(n).encode()) for n in range(4)]
        assert backend.join(chord, 2, parts[2], 4) is None
        assert other.join(chord, 0, parts[0], 4) is None
        assert backend.join(chord, 3, parts[3], 4) is None
        assert as_results(other.join(chord, 1, parts[1], 4)) == [b"0", b"1", b"2", b"3"]

    def test_a_part_that_comes_again_replaces_nothing_and_completes_nothing(
        self, backend: ResultBackend
    ) -> None:
        self.needs_groups(backend)
        chord, first = str(uuid4()), record(result=b'"first"')
        again = record(first.task_id, result=b'"again"')
        assert backend.join(chord, 0, first, 2) is None
        assert backend.join(chord, 0, again, 2) is None
        assert as_results(backend.join(chord, 1, record(result=b'"other"'), 2)) == [b'"first"', b'"other"']
        assert as_results(backend.join(chord, 0, again, 2)) == [b'"first"', b'"other"']

    def test_chords_do_not_mix(self, backend: ResultBackend) -> None:
        self.needs_groups(backend)
        first, second = str(uuid4()), str(uuid4())
        assert backend.join(first, 0, record(), 2) is None
        assert backend.join(second, 1, record(), 2) is None
        assert as_results(backend.join(second, 0, record(result=b"0"), 2)) == [b"0", b"null"]

    def test_a_chord_of_one(self, backend: ResultBackend) -> None:
        self.needs_groups(backend)
        assert as_results(backend.join(str(uuid4()), 0, record(result=b"1"), 1)) == [b"1"]

    def test_a_chord_is_finished_once(self, backend: ResultBackend, other: ResultBackend) -> None:
        self.needs_groups(backend)
        chord = str(uuid4())
        assert backend.join(chord, 0, record(), 1) is not None
        assert other.finish_chord(chord) is True
        assert backend.finish_chord(chord) is False
        assert backend.join(chord, 0, record(), 1) is None
        assert other.finish_chord(chord) is False

    def test_parts_that_come_together_complete_the_chord(
        self, backend: ResultBackend, other: ResultBackend
    ) -> None:
        self.needs_groups(backend)
        chord = str(uuid4())

        def add(index: int) -> tuple[bool, bool]:
            on = backend if index % 2 else other
            complete = on.join(chord, index, record(), 8) is not None
            return complete, complete and on.finish_chord(chord)

        outcomes = [each.result() for each in [InThread(partial(add, n)) for n in range(8)]]
        assert sum(complete for complete, _ in outcomes) >= 1
        assert sum(finished for _, finished in outcomes) == 1

    # -- revocations --------------------------------------------------------------------------------------

    def test_revocations_are_told_once_by_position(
        self, backend: ResultBackend, other: ResultBackend, clock: MovableClock
    ) -> None:
        until = clock.now() + timedelta(hours=3)
        start, known = backend.revoked(0)
        assert dict(known) == {}
        backend.revoke(["a", "b"], until=until)
        position, news = other.revoked(start)
        assert dict(news) == {"a": until, "b": until}
        assert other.revoked(position) == (position, {})
        backend.revoke(["c"], until=until)
        last, news = other.revoked(position)
        assert dict(news) == {"c": until}
        assert last > position
        assert other.revoked(0) == (last, {"a": until, "b": until, "c": until})

    def test_revocations_hold_as_long_as_they_should(
        self, backend: ResultBackend, clock: MovableClock
    ) -> None:
        short, long = clock.now() + timedelta(seconds=60), clock.now() + timedelta(seconds=600)
        backend.revoke(["short"], until=short)
        backend.revoke(["long", "longer"], until=long)
        backend.revoke(["longer"], until=short)
        clock.advance(59)
        assert backend.revoked(0)[1].keys() == {"short", "long", "longer"}
        clock.advance(2)
        assert backend.revoked(0)[1] == {"long": long, "longer": long}
        backend.revoke(["new"], until=clock.now() + timedelta(seconds=5))
        assert backend.revoked(0)[1].keys() == {"long", "longer", "new"}

    def test_a_task_revoked_again_is_news(self, backend: ResultBackend, clock: MovableClock) -> None:
        until = clock.now() + timedelta(seconds=60)
        backend.revoke(["a", "b"], until=until)
        position, _ = backend.revoked(0)
        later = until + timedelta(seconds=60)
        backend.revoke(["a"], until=later)
        assert dict(backend.revoked(position)[1]) == {"a": later}

    def test_many_revocations_at_once(self, backend: ResultBackend, clock: MovableClock) -> None:
        until = clock.now() + timedelta(seconds=60)
        wanted = [str(uuid4()) for _ in range(2500)]
        backend.revoke([*wanted, wanted[0]], until=until)
        assert backend.revoked(0)[1].keys() == set(wanted)

    def needs_groups(self, backend: ResultBackend) -> None:
        if not backend.traits.groups:
            pytest.skip("this backend keeps no groups")
