from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celeriac.errors import ImproperlyConfigured
from celeriac.topology import Binding, Broadcast, Exchange, Queue, matches, queues_for

# -- topic ---------------------------------------------------------------------------------------------------


def words_of(key: str) -> list[str]:
    """A routing key is zero or more words, delimited by dots (AMQP 0-9-1, 3.1.3.3)."""
    return key.split(".") if key else []


def naive(pattern: list[str], words: list[str]) -> bool:
    """Topic matching as the words of the specification, one case each."""
    if not pattern:
        return not words
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return any(naive(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and first in ("*", words[0]) and naive(rest, words[1:])


word = st.sampled_from(["", "a", "b", "ab", "a b", "é", "\n", "+", "(", "[^.]", "\\"])
keys = st.lists(word, max_size=6).map(".".join)
patterns = st.lists(word | st.sampled_from(["*", "#"]), max_size=6).map(".".join)


@settings(deadline=None, max_examples=1000)
@given(patterns, keys)
@example("#", "")
@example("*", "")
@example("", "")
@example("#.#", "a")
@example("#.a", "a")
@example("a.#", "a")
@example("a.#", "ab")
@example("#.a.#", "a")
@example("*.#", "")
@example("#.*", "a.b")
@example("*", ".")
@example("a.*.b", "a..b")
def test_topics_match_as_the_specification_says(pattern: str, key: str):
    assert matches("topic", pattern, key) == naive(words_of(pattern), words_of(key))


@pytest.mark.parametrize(
    ("pattern", "key", "reached"),
    [
        # the examples of the AMQP specification
        ("*.stock.#", "usd.stock", True),
        ("*.stock.#", "eur.stock.db", True),
        ("*.stock.#", "stock.nasdaq", False),
        ("web.*", "web.mail", True),
        ("web.*", "web.mail.new", False),
        ("web.*", "web", False),
        ("web.#", "web", True),
        ("#.web", "a.b.web", True),
    ],
)
def test_topics_match_like_this(pattern: str, key: str, reached: bool):
    assert matches("topic", pattern, key) is reached


def test_many_wildcards_in_a_row_take_no_longer_than_one():
    assert not matches("topic", ".".join(["#"] * 50 + ["x"]), ".".join("a" * 60))


# -- the other types -----------------------------------------------------------------------------------------


def test_direct_means_equal_and_fanout_means_all():
    assert matches("direct", "a.b", "a.b")
    assert not matches("direct", "a.#", "a.b")
    assert matches("fanout", "x", "y")


@pytest.mark.parametrize(
    ("arguments", "headers", "reached"),
    [
        ({}, {}, True),
        ({"a": 1}, None, False),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"x-match": "all", "a": 1}, {"a": 2}, False),
        ({"x-match": "any", "a": 1, "b": 2}, {"b": 2}, True),
        ({"x-match": "any", "a": 1}, {"a": 2}, False),
        ({"x-match": "any"}, {"a": 2}, False),
        ({"x-other": 5, "a": 1}, {"a": 1}, True),
        ({"a": None}, {"a": "anything"}, True),
        ({"a": None}, {}, False),
    ],
)
def test_headers_match_all_or_any(arguments: dict[str, Any], headers: dict[str, Any] | None, reached: bool):
    assert matches("headers", "", "", arguments=arguments, headers=headers) is reached


# -- from an exchange to queues ------------------------------------------------------------------------------


def test_the_default_exchange_reaches_the_queue_of_that_name():
    assert queues_for("", "web", []) == ["web"]


def test_a_queue_without_exchange_is_bound_to_a_direct_one_of_its_name():
    assert queues_for("web", "web", [Queue("web"), Queue("mail")]) == ["web"]
    assert queues_for("web", "other", [Queue("web")]) == []


def test_a_message_reaches_each_queue_once_through_any_of_its_bindings():
    news, other = Exchange("news", "topic"), Exchange("other", "fanout")
    queues = [
        Queue("all", news, "#", (Binding(news, "a.*"), Binding(other))),
        Queue("sport", news, "sport.#"),
        Queue("keyless", news),
    ]
    assert queues_for("news", "a.b", queues) == ["all"]
    assert queues_for("news", "sport", queues) == ["all", "sport"]
    assert queues_for("other", "", queues) == ["all"]
    assert queues_for("nowhere", "a.b", queues) == []


def test_headers_exchanges_use_the_arguments_of_the_binding():
    queue = Queue("q", Exchange("h", "headers"), binding_arguments={"kind": "pdf"})
    assert queues_for("h", "", [queue], headers={"kind": "pdf"}) == ["q"]
    assert queues_for("h", "", [queue], headers={"kind": "txt"}) == []


# -- what users write ----------------------------------------------------------------------------------------


def test_wrong_values_are_refused_with_what_was_expected():
    with pytest.raises(
        ImproperlyConfigured, match=r"exchange 'x': type must be one of direct, .*not 'topik'"
    ):
        Exchange("x", "topik")  # type: ignore[arg-type]
    with pytest.raises(ImproperlyConfigured, match="needs a name"):
        Queue("")
    with pytest.raises(ImproperlyConfigured, match="not a queue: 5"):
        Queue.of(5)


@dataclass
class KombuExchange:
    """The attributes that kombu.Exchange has."""

    name: str
    type: str = "direct"
    durable: bool = True
    auto_delete: bool = False
    delivery_mode: int | None = None
    arguments: dict[str, Any] | None = None


@dataclass
class KombuBinding:
    exchange: KombuExchange
    routing_key: str
    arguments: dict[str, Any] | None = None


@dataclass
class KombuQueue:
    """The attributes that kombu.Queue has."""

    name: str
    exchange: KombuExchange | None = None
    routing_key: str | None = None
    bindings: list[KombuBinding] = field(default_factory=list[KombuBinding])
    durable: bool = True
    expires: float | None = None
    max_priority: int | None = None
    queue_arguments: dict[str, Any] | None = None


def test_queues_are_read_from_names_ours_and_kombus():
    queue = Queue("web")
    assert Queue.of(queue) is queue
    assert Queue.of("web") == queue
    foreign = KombuQueue(
        "web",
        KombuExchange("x", "topic", delivery_mode=1),
        "web.#",
        [KombuBinding(KombuExchange("y"), "k", {"a": 1})],
        durable=False,
        expires=60.0,
        max_priority=10,
    )
    assert Queue.of(foreign) == Queue(
        "web",
        Exchange("x", "topic", delivery_mode=1),
        "web.#",
        (Binding(Exchange("y"), "k", {"a": 1}),),
        durable=False,
        expires=60.0,
        max_priority=10,
    )


def test_dead_letters_have_a_queue_beside():
    assert Queue("web").dead == "web.dead"


def test_a_broadcast_queue_is_the_workers_own_and_goes_by_the_name_of_its_exchange() -> None:
    first, second = Broadcast("news"), Broadcast("news")
    assert first.name.startswith("bcast.") and first.name != second.name
    assert first.exchange == second.exchange == Exchange("news", "fanout")
    assert (first.alias, first.known_as, first.auto_delete, first.is_fanout) == ("news", "news", True, True)


def test_a_broadcast_queue_may_be_named() -> None:
    assert Broadcast("news", queue="mine").name == "mine"
    assert Broadcast("news", queue="mine", unique=True).name.startswith("mine.")
    assert Broadcast("news", alias="all").known_as == "all"


def test_other_queues_are_known_by_their_names() -> None:
    assert Queue("q").known_as == "q"
    assert not Queue("q").is_fanout
