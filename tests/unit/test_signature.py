"""Signatures: calls as values."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac import Celeriac, Chain, Signature, chain, maybe_signature, signature
from celeriac.canvas.signature import plain
from celeriac.errors import NotRegistered
from celeriac.wire import codecs

KEYS = ["task", "args", "kwargs", "options", "subtask_type", "immutable"]


@pytest.fixture
def app() -> Iterator[Celeriac]:
    with Celeriac("t", broker="memory://", backend="memory://", set_as_current=False) as app:

        @app.task(name="add")
        def add(x: int, y: int = 0, *, z: int = 0) -> int:
            return x + y + z

        yield app


def add(app: Celeriac, *args: Any, **kwargs: Any) -> Signature[Any]:
    return app.tasks["add"].s(*args, **kwargs)


def test_a_signature_has_celerys_keys_in_order(app: Celeriac) -> None:
    made = add(app, 1, z=2).set(queue="web")
    assert list(made) == KEYS
    assert json.loads(codecs.dumps(made, "json")) == {
        "task": "add",
        "args": [1],
        "kwargs": {"z": 2},
        "options": {"queue": "web"},
        "subtask_type": None,
        "immutable": False,
    }


def test_what_it_holds_can_be_read(app: Celeriac) -> None:
    made = app.tasks["add"].signature((1,), {"z": 2}, task_id="i", root_id="r", parent_id="p", immutable=True)
    assert (made.task, made.name, made.args, made.kwargs) == ("add", "add", (1,), {"z": 2})
    assert (made.id, made.root_id, made.parent_id, made.immutable) == ("i", "r", "p", True)
    assert (made.app, made.type, made.subtask_type) == (app, app.tasks["add"], None)


def test_new_arguments_come_first_and_new_options_win(app: Celeriac) -> None:
    made = add(app, 2, z=1).set(queue="web", priority=1)
    more = made.clone((1,), {"z": 3}, queue="mail")
    assert (more.args, more.kwargs, more.options) == ((1, 2), {"z": 3}, {"queue": "mail", "priority": 1})
    assert (made.args, made.kwargs, made.options) == ((2,), {"z": 1}, {"queue": "web", "priority": 1})
    assert made.partial((1,)).args == (1, 2)


def test_an_immutable_one_takes_options_only(app: Celeriac) -> None:
    made = app.tasks["add"].si(1, 2).clone((9,), {"z": 9}, queue="web")
    assert (made.args, made.kwargs, made.options, made.immutable) == ((1, 2), {}, {"queue": "web"}, True)


def test_group_and_stamps_stay_once_they_are_set(app: Celeriac) -> None:
    made = add(app, 1).set(group_id="g", stamped_headers=["color"], color="blue")
    more = made.clone(group_id="other", color="red", stamped_headers=["size"], size=3)
    assert more.options == {"group_id": "g", "stamped_headers": ["color"], "color": "blue", "size": 3}


def test_replace_puts_others_in_their_place(app: Celeriac) -> None:
    made = add(app, 1, z=2).set(queue="web")
    assert made.replace(args=(5,)).args == (5,)
    other = made.replace(kwargs={"y": 1}, options={})
    assert (other.args, other.kwargs, other.options) == ((1,), {"y": 1}, {})


def test_links_are_added_once_and_copies_have_their_own(app: Celeriac) -> None:
    made, callback, errback = add(app, 1), add(app, 2), add(app, 3)
    assert made.link(callback) is callback
    made.link(callback)
    assert made.on_error(errback) is made
    assert made.options == {"link": [callback], "link_error": [errback]}
    other = made.clone()
    other.link(errback)
    assert made.options["link"] == [callback]
    assert other.flatten_links() == [other, callback, errback]


def test_a_single_link_given_as_option_becomes_a_list(app: Celeriac) -> None:
    made = add(app, 1).set(link=add(app, 2))
    made.link(add(app, 3))
    assert [each.args for each in made.options["link"]] == [(2,), (3,)]


def test_freezing_fixes_the_id(app: Celeriac) -> None:
    made = add(app, 1)
    result = made.freeze(root_id="r", group_index=0)
    assert made.options == {"task_id": result.id, "root_id": "r", "group_index": 0}
    assert made.AsyncResult().id == result.id
    assert made.apply_async().id == result.id
    assert add(app, 1).freeze("mine").id == "mine"


def test_sending_goes_through_the_task(app: Celeriac) -> None:
    result = add(app, 2).set(queue="web").apply_async((1,), {"z": 3}, priority=4)
    (delivery,) = app.broker.consumer([app.publisher.router.queue("web")], name="c").fetch(1, 0)
    assert delivery.envelope.headers["id"] == result.id
    assert delivery.envelope.body.startswith(b'[[1, 2], {"z": 3}')
    assert delivery.envelope.properties["priority"] == 4


def test_an_unknown_task_is_sent_by_name(app: Celeriac) -> None:
    made = app.signature("elsewhere.task", args=(1,))
    assert made.delay().id
    with pytest.raises(NotRegistered):
        made.type


def test_it_can_be_called_and_applied(app: Celeriac) -> None:
    assert add(app, 2, z=1)(3) == 6
    assert add(app, 2).apply((3,)).get() == 5


def test_tilde_sends_and_waits(app: Celeriac) -> None:
    app.conf.task_always_eager = True
    assert ~add(app, 2, 3) == 5


def test_signatures_from_dicts_and_names(app: Celeriac) -> None:
    made = add(app, 1)
    again = signature(dict(made), app=app)
    assert again == made
    assert again.delay().id
    assert signature(made) is not made
    assert maybe_signature(made) is made
    assert maybe_signature(made, clone=True) is not made
    assert maybe_signature(None) is None
    assert signature("add", (1,), immutable=True).immutable


def test_chains_survive_the_wire_as_chains(app: Celeriac) -> None:
    made = add(app, 1) | add(app, 2)
    again = signature(json.loads(codecs.dumps(made, "json")), app=app)
    assert isinstance(again, Chain)
    assert [step.args for step in again.tasks] == [[1], [2]]
    assert isinstance(pickle.loads(pickle.dumps(made)), Chain)


def test_a_deep_copy_is_a_plain_dict(app: Celeriac) -> None:
    assert type(copy.deepcopy(add(app, 1))) is dict


def test_plain_leaves_no_signature_at_any_depth(app: Celeriac) -> None:
    inner = add(app, 1)
    made = plain(add(app, [inner], (inner,)).set(link=[inner]))
    assert type(made) is dict
    assert type(made["args"][0][0]) is dict
    assert type(made["args"][1][0]) is dict
    assert type(made["options"]["link"][0]) is dict


def test_how_it_looks(app: Celeriac) -> None:
    assert repr(add(app, 2, z="s")) == "add(2, z='s')"
    assert add(app, 2).reprcall(1) == "add(1, 2)"
    assert repr(add(app, 1) | add(app, 2)) == "add(1) | add(2)"
    assert repr(chain()) == "chain()"


def test_chains_are_flat(app: Celeriac) -> None:
    a, b, c = add(app, 1), add(app, 2), add(app, 3)
    for made in (a | b | c, a | (b | c), chain(a, b, c), chain([a, b, c]), chain(a, chain(b, c))):
        assert isinstance(made, Chain)
        assert made.tasks == [a, b, c]
        assert (made.task, made.subtask_type) == ("celery.chain", "chain")


def test_a_chain_grows_in_place(app: Celeriac) -> None:
    a, b = add(app, 1), add(app, 2)
    made: Signature[Any] = a
    made |= b
    assert isinstance(made, Chain)
    assert [dict(each) for each in made.tasks] == [dict(a), dict(b)]
    assert a == add(app, 1)


def test_a_chain_within_a_chain_keeps_its_links(app: Celeriac) -> None:
    inner = chain(add(app, 1), add(app, 2))
    inner.link(add(app, 8))
    inner.link_error(add(app, 9))
    tasks = chain(add(app, 0), inner).tasks
    assert [sorted(task.options) for task in tasks] == [[], ["link_error"], ["link", "link_error"]]


def test_what_is_no_signature_is_no_step(app: Celeriac) -> None:
    with pytest.raises(TypeError, match=r"did you forget \.s\(\)"):
        chain(add(app, 1), app.tasks["add"])
    with pytest.raises(TypeError):
        add(app, 1) | 3


def test_an_empty_chain_sends_nothing() -> None:
    assert chain().apply_async() is None


def test_a_chain_runs_eagerly_in_order(app: Celeriac) -> None:
    app.conf.task_always_eager = True
    result = (add(app, 1, 1) | add(app, 3) | add(app, 4)).delay()
    assert result.get() == 9
    assert result.parent is not None
    assert result.parent.get() == 5
    assert chain(add(app, 1), add(app, 2))(5) == 8


def test_a_chain_stops_eagerly_at_a_failure(app: Celeriac) -> None:
    ran: list[int] = []

    @app.task(name="fail")
    def fail(value: int) -> None:
        ran.append(value)
        raise ValueError(value)

    result = (add(app, 1, 1) | fail.s() | fail.s()).apply()
    assert ran == [2]
    assert (result.state, str(result.result)) == ("FAILURE", "2")


def test_freezing_a_chain_fixes_every_id(app: Celeriac) -> None:
    made = add(app, 1) | add(app, 2)
    result = made.freeze("last")
    assert [step.id for step in made.tasks] == [result.parent and result.parent.id, "last"]
    assert made.apply_async().as_list() == result.as_list()
