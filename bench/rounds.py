"""Steps of a measurement, taken in turn, round after round: what disturbs the machine disturbs all alike."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import Progress

Steps = Mapping[str, Callable[[], None]]


class Failed(Exception):
    """A step did not come to an end, or its tasks did not all run: it gives no figure."""


def run(steps: Steps, rounds: int) -> list[str]:
    """Take every step once in each round. Returns what failed, and is told so at once."""
    console = Console(stderr=True)
    failures: list[str] = []
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=len(steps) * rounds)
        for _ in range(rounds):
            for what, step in steps.items():
                progress.update(bar, description=what)
                try:
                    step()
                except (Failed, OSError, subprocess.SubprocessError) as exc:
                    failures.append(what)
                    notes = "\n".join(getattr(exc, "__notes__", ()))
                    console.print(f"{what}: {exc}\n{notes}", style="red", markup=False, highlight=False)
                progress.advance(bar)
    return failures
