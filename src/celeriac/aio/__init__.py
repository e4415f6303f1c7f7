"""The asyncio face: coroutines on top of blocking brokers and backends, by two threads that work in batches.

Nothing here is imported before a program first awaits something.
"""
