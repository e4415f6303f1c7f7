"""``python -m celeriac`` and the ``celeriac`` command."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line and return its exit status."""
    from celeriac.cli.main import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
