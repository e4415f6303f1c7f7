"""Words for tests that look into a Redis server."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import redis

__all__ = ["client_of", "commands_of", "subscribers_of"]


@contextmanager
def client_of(url: str) -> Generator[Any]:
    """A client that does nothing by itself."""
    with redis.Redis.from_url(url, protocol=2) as client:
        yield client


@contextmanager
def commands_of(client: Any) -> Generator[list[list[str]]]:
    """What the server does on the client's database during the block, scripts' commands included."""
    commands: list[list[str]] = []
    database = client.get_connection_kwargs().get("db", 0)
    with client.monitor() as monitor:
        yield commands
        client.echo("the end of the block")
        while (command := monitor.next_command())["command"] != "ECHO the end of the block":
            if command["db"] == database and not command["command"].startswith("SELECT "):
                commands.append(command["command"].split(" "))


def subscribers_of(client: Any) -> list[dict[str, str]]:
    """Connections that listen to channels."""
    return [each for each in client.client_list() if int(each["sub"])]
