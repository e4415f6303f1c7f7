"""From a canvas to messages and results: pure."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.canvas import Chain, Signature, chain
from celeriac.canvas.plan import plan
from celeriac.result import result_from_tuple


def s(task: str, *args: Any, **options: Any) -> Signature[Any]:
    return Signature(task, args, None, options)


def ids() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"i{next(numbers)}"


def test_a_signature_is_one_message_with_an_id() -> None:
    planned = plan(s("a", 1, queue="web"), (0,), {"k": 2}, {"priority": 3}, new_id=ids())
    (message,) = planned.messages
    assert (message.task, message.args, message.kwargs) == ("a", (0, 1), {"k": 2})
    assert message.options == {"task_id": "i1", "queue": "web", "priority": 3}
    assert (planned.groups, planned.result) == ([], [["i1", None], None])


def test_an_id_that_is_given_is_kept() -> None:
    assert plan(s("a", task_id="mine")).result == [["mine", None], None]


def test_a_chain_is_its_first_task_carrying_the_rest_reversed() -> None:
    planned = plan(chain(s("a"), s("b", 2), s("c")), (1,), new_id=ids())
    (message,) = planned.messages
    assert (message.task, message.args, message.id) == ("a", (1,), "i1")
    step = {"kwargs": {}, "subtask_type": None, "immutable": False}
    assert message.options["chain"] == [
        {"task": "c", "args": (), "options": {"task_id": "i3"}, **step},
        {"task": "b", "args": (2,), "options": {"task_id": "i2"}, **step},
    ]
    assert all(type(each) is dict for each in message.options["chain"])
    assert planned.result == [["i3", [["i2", [["i1", None], None]], None]], None]


def test_a_chain_hands_each_option_to_whom_it_is_due() -> None:
    made = chain(s("a"), s("b"))
    options = {
        "task_id": "last",
        "link": s("done"),
        "link_error": [s("alert")],
        "countdown": 3,
        "queue": "web",
    }
    (first,) = plan(made, options=options, new_id=ids()).messages
    assert {key: first.options[key] for key in ("countdown", "queue")} == {"countdown": 3, "queue": "web"}
    assert "link" not in first.options
    (last,) = first.options["chain"]
    assert last["options"]["task_id"] == "last"
    assert [each["task"] for each in last["options"]["link"]] == ["done"]
    assert [each["task"] for each in last["options"]["link_error"]] == ["alert"]
    assert first.options["link_error"][0].task == "alert"
    assert "countdown" not in last["options"]


def test_what_follows_the_chain_comes_after_all_of_it() -> None:
    after = [{"task": "z"}, {"task": "y"}]
    (first,) = plan(chain(s("a"), s("b")), options={"chain": after}).messages
    assert [each["task"] for each in first.options["chain"]] == ["z", "y", "b"]


def test_the_last_of_a_chain_has_an_empty_rest_and_not_none() -> None:
    (message,) = plan(chain(s("a")), options={"chain": []}).messages
    assert message.options["chain"] == []
    (single,) = plan(s("a"), options={"chain": []}).messages
    assert single.options["chain"] == []
    assert "chain" not in plan(chain(s("a"))).messages[0].options


def test_an_empty_chain_cannot_be_planned() -> None:
    with pytest.raises(ValueError, match="empty chain"):
        plan(chain())


Canvas = st.recursive(
    st.integers(0, 9).map(lambda n: s(f"t{n}", n)),
    lambda children: st.lists(children, min_size=1, max_size=4).map(lambda tasks: chain(*tasks)),
    max_leaves=12,
)


def leaves(canvas: Signature[Any]) -> list[str]:
    if not isinstance(canvas, Chain):
        return [canvas.task]
    return [leaf for step in canvas.tasks for leaf in leaves(step)]


@given(Canvas)
def test_any_nesting_runs_every_task_once_in_order(canvas: Signature[Any]) -> None:
    before = repr(canvas), repr(canvas.options)
    planned = plan(canvas)
    (first,) = planned.messages
    following = first.options.get("chain", [])
    order = [first, *reversed(following)]
    assert [each["task"] for each in order] == leaves(canvas)
    run = [each["options"]["task_id"] for each in order]
    assert len(set(run)) == len(run)
    assert list(reversed(result_from_tuple(planned.result).as_list())) == run
    assert (repr(canvas), repr(canvas.options)) == before
