"""``python -m celeriac.executor``: how a worker starts the processes that run user code. Not for people."""

from __future__ import annotations

import logging
import os
import sys


def main(argv: list[str]) -> int:
    from celeriac.executor import nursery

    role, *numbers = argv
    if role == "nursery":
        line, parent = map(int, numbers)
        return nursery.main(line, parent)
    parent, boot, inbox, line, index = map(int, numbers)
    return nursery.start_fresh(parent, boot, inbox, line, index)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: it would wait for threads that the user's modules have started.
    os._exit(status)
