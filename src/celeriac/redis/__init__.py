"""Redis: one server as URL and options name it, for the broker and the result backend alike."""

from celeriac.redis.server import RedisServer

__all__ = ["RedisServer"]
