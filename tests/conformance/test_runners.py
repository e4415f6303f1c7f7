"""The shipped runners against the runner conformance suite."""

from celeriac.executor.runners.base import Runner
from celeriac.executor.runners.sequential import SequentialRunner
from celeriac.testing.conformance.runner import RunnerConformance


class TestSequentialRunner(RunnerConformance):
    def make_runner(self) -> Runner:
        return SequentialRunner()
