"""`Channel`: one line of talk within a connection: calls and their answers, deliveries, confirms."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from celeriac.amqp import methods
from celeriac.errors import OperationalError

if TYPE_CHECKING:
    from celeriac.amqp.connection import Connection

__all__ = ["Arrival", "Call", "Channel", "ChannelClosed", "Refused"]

_unpack_u64 = struct.Struct(">Q").unpack_from
_unpack_confirm = struct.Struct(">QB").unpack_from


class ChannelClosed(OperationalError):
    """The server closed a channel: it refuses what was asked for. The connection goes on."""

    def __init__(self, where: str, closed: methods.Closed) -> None:
        super().__init__(f"{where}: {closed.text}")
        self.code = closed.code
        self.text = closed.text
        #: Class and method that the server refused; zeros where it closed the channel of its own accord.
        self.method = closed.method


class Call:
    """A method whose answer is to come; see `Connection.wait`."""

    __slots__ = ("_error", "_payload", "answer", "done")

    def __init__(self, answer: bytes) -> None:
        #: Class and method of the answer.
        self.answer = answer
        self.done = False
        self._payload = b""
        self._error: OperationalError | None = None

    def finish(self, payload: bytes) -> None:
        self._payload, self.done = payload, True

    def fail(self, error: OperationalError) -> None:
        self._error, self.done = error, True

    def result(self) -> bytes:
        """The payload of the answer. Raises what the server, or the loss of the connection, made of it."""
        if self._error is not None:
            raise self._error
        return self._payload


class Arrival(NamedTuple):
    """A message as it came from a queue: nothing of it is decoded but how it came."""

    consumer_tag: str
    tag: int
    redelivered: bool
    routing_key: str
    properties: bytes
    body: bytes


class Refused(NamedTuple):
    """A mandatory message that came back: no queue takes it."""

    text: str
    exchange: str
    routing_key: str
    properties: bytes


class Channel:
    """Used under the connection's lock. What the server sends of its own accord ends up in

    * `arrivals`, messages; `cancelled`, tags of consumers whose queue is gone;
    * the callbacks `on_confirm` (tag, whether for all before it too, whether it was taken) and `on_refused`.
    """

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.closed: OperationalError | None = None
        self.arrivals: deque[Arrival] = deque()
        self.cancelled: list[str] = []
        self.on_confirm: Callable[[int, bool, bool], None] | None = None
        self.on_refused: Callable[[Refused], None] | None = None
        self._calls: deque[Call] = deque()
        #: Of the message whose parts are coming.
        self._method = b""
        self._properties = b""
        self._missing = 0
        self._chunks: list[bytes] = []

    # -- asking ----------------------------------------------------------------------------------------------

    def call(self, method: bytes, answer: bytes, *, timeout: float = 10.0) -> bytes:
        """Send a method and wait for its answer. Raises `ChannelClosed` where the server refuses."""
        return self.connection.wait(self.start(method, answer), timeout)

    def start(self, method: bytes, answer: bytes) -> Call:
        """Send a method; its answer is waited for later, or by nobody."""
        self.send(method)
        return self.expect(answer)

    def expect(self, answer: bytes) -> Call:
        """For a method that the caller sends himself, before any other that has an answer."""
        call = Call(answer)
        self._calls.append(call)
        return call

    def send(self, data: bytes) -> None:
        """Send methods that have no answer."""
        if self.closed is not None:
            raise self.closed
        self.connection.send(data)

    def close(self) -> None:
        """Close it, and do not wait for the answer."""
        if self.closed is None and self.connection.is_usable:
            self.start(methods.channel_close(self.number), methods.CHANNEL_CLOSE_OK)

    # -- what comes ------------------------------------------------------------------------------------------

    def take_in(self, kind: int, payload: bytes) -> None:
        """One frame of this channel."""
        if kind == 3:
            self._body(payload)
        elif kind == 2:
            self._properties = payload[12:]
            (self._missing,) = _unpack_u64(payload, 4)
            if not self._missing:
                self._complete(b"")
        elif kind == 1:
            what = payload[:4]
            if what in (methods.BASIC_DELIVER, methods.BASIC_RETURN):
                self._method = payload
            else:
                self._take_method(what, payload)

    def _body(self, chunk: bytes) -> None:
        self._missing -= len(chunk)
        if self._missing > 0:
            self._chunks.append(chunk)
        elif self._chunks:
            self._chunks.append(chunk)
            body = b"".join(self._chunks)
            self._chunks.clear()
            self._complete(body)
        else:
            self._complete(chunk)

    def _complete(self, body: bytes) -> None:
        method = self._method
        if method[:4] == methods.BASIC_DELIVER:
            stop = 5 + method[4]
            consumer_tag = method[5:stop].decode()
            (tag,) = _unpack_u64(method, stop)
            redelivered = method[stop + 8] != 0
            at = stop + 9
            at += 1 + method[at]  # the exchange
            routing_key = method[at + 1 : at + 1 + method[at]].decode("utf-8", "replace")
            self.arrivals.append(Arrival(consumer_tag, tag, redelivered, routing_key, self._properties, body))
        elif self.on_refused is not None:
            text, at = methods.read_shortstr(method, 6)
            exchange, at = methods.read_shortstr(method, at)
            routing_key, _ = methods.read_shortstr(method, at)
            self.on_refused(Refused(text, exchange, routing_key, self._properties))

    def _take_method(self, what: bytes, payload: bytes) -> None:
        match what:
            case methods.BASIC_ACK | methods.BASIC_NACK:
                if self.on_confirm is not None:
                    tag, bits = _unpack_confirm(payload, 4)
                    self.on_confirm(tag, bool(bits & 1), what == methods.BASIC_ACK)
            case methods.BASIC_CANCEL:
                self.cancelled.append(methods.read_shortstr(payload, 4)[0])
            case methods.CHANNEL_CLOSE:
                error = ChannelClosed(self.connection.where, methods.read_closed(payload))
                self.connection.forget(self)
                self.fail(error)
                self.connection.send(methods.channel_close_ok(self.number))
            case methods.CHANNEL_FLOW:
                self.connection.send(methods.channel_flow_ok(self.number, bool(payload[4])))
            case _:
                self._answer(what, payload)

    def _answer(self, what: bytes, payload: bytes) -> None:
        # Answers of one kind come in the order of the calls. Those of different kinds need not: queues speak too.
        for at, call in enumerate(self._calls):
            if call.answer == what:
                del self._calls[at]
                call.finish(payload)
                break
        if what == methods.CHANNEL_CLOSE_OK:
            self.connection.forget(self)
            self.fail(OperationalError("the channel was closed"))

    def fail(self, error: OperationalError) -> None:
        """It is closed: nothing more will come."""
        if self.closed is None:
            self.closed = error
        while self._calls:
            self._calls.popleft().fail(error)
