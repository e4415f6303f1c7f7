"""Bytes ↔ values, no I/O. Celery's formats live here and nowhere else.

`envelope`: a message as a broker carries it · `message`: a decoded task call (protocol 2, reads 1) ·
`record`: the state of one task · `errors`: exceptions as data · `codecs`, `compression`: bodies ·
`disposition`: what becomes of a delivery · `frames`: what a worker and its executors say to each other.
"""
