"""RabbitMQ, below the seams: a connection, its channels, what is declared, and a confirmed publisher.

The driver (py-amqp) opens a connection: TCP, TLS, login, tuning. From there on the socket is ours
(`amqp.connection`), so that one place decides how long anything may take and who may touch it.

`server.AMQPServer` → `connection.Connection` → `channel.Channel`; `publisher.Publisher` is what most need.
"""

from __future__ import annotations
