"""Words ``key=value`` become settings."""

import click
import pytest

from celeriac.cli.overrides import parse_overrides


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("worker_lease=5", {"worker_lease": "5"}),
        ("worker.lease=5", {"worker_lease": "5"}),
        (".worker.lease=5", {"worker_lease": "5"}),
        ("Worker.Lease=5", {"worker_lease": "5"}),
        ("CELERYD_CONCURRENCY=5", {"CELERYD_CONCURRENCY": "5"}),
        ("broker_url=redis://h/0?a=b", {"broker_url": "redis://h/0?a=b"}),
        ("result_backend=", {"result_backend": ""}),
        ("worker_lease=(float)5", {"worker_lease": 5.0}),
        ("worker_concurrency=(int)5", {"worker_concurrency": 5}),
        ("task_acks_late=(bool)off", {"task_acks_late": False}),
        ("x=(string)(int)5", {"x": "(int)5"}),
        ('task_routes=(json){"a.b": {"queue": "q"}}', {"task_routes": {"a.b": {"queue": "q"}}}),
        ('imports=(tuple)["a", "b"]', {"imports": ("a", "b")}),
    ],
)
def test_a_word_is_a_setting(word: str, expected: dict[str, object]) -> None:
    assert parse_overrides([word]) == expected


def test_the_last_word_wins() -> None:
    assert parse_overrides(["a=1", "a=2", "b=3"]) == {"a": "2", "b": "3"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("worker", "'worker' is neither an option nor a setting"),
        ("=5", "neither"),
        ("a=(int)x", "a: 'x' is no int"),
        ("a=(bool)maybe", "a: 'maybe' is no bool"),
        ("a=(json){", "a: '{' is no json"),
        ("a=(blob)x", r"\(blob\) is not a type"),
    ],
)
def test_a_bad_word_is_named(word: str, message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        parse_overrides([word])
