"""What the command itself says: help, versions, later commands, mistakes."""

from __future__ import annotations

import click
import pytest

from celeriac import __version__
from celeriac.cli.arguments import options_of
from celeriac.cli.main import Commands, celeriac, run

COMMANDS = ["worker", "call", "result", "purge", "report", "shell"]


def subcommand(name: str) -> click.Command:
    assert isinstance(celeriac, Commands)
    command = celeriac.get_command(click.Context(celeriac), name)
    assert command is not None
    return command


def test_help_lists_the_commands_that_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    listed = [line.split()[0] for line in shown.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == COMMANDS


def test_without_arguments_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert capsys.readouterr().out.startswith("Usage: celeriac")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: celeriac {name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_takes_a_value_on_one_side_of_the_command_only(name: str) -> None:
    # otherwise what follows it could not be read without knowing the side
    general, own = options_of(celeriac), options_of(subcommand(name))
    assert {each for each in general.keys() & own.keys() if general[each] != own[each]} == set()
    assert general.keys() & own.keys() == {"-h", "--help"}


@pytest.mark.parametrize("argv", [["--version"], ["worker", "--version"]])
def test_version(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 0
    assert capsys.readouterr().out == f"{__version__} (celeriac)\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("beat -A proj", "'beat' comes in a later release"),
        ("-A proj -l info inspect ping", "'inspect' comes in a later release"),
        ("wroker -A proj", "No such command 'wroker'. Did you mean 'worker'?"),
        ("-A proj", "Missing command."),
        ("worker --logfle x", "No such option '--logfle'. Did you mean '--logfile'"),
        ("--logfle x worker", "No such option '--logfle'. Did you mean '--logfile'"),
        ("worker --aap x", "No such option '--aap'. Did you mean '--app'?"),
        ("worker -A", "Option '-A' requires an argument."),
        ("--workdir /nowhere/at/all report", "'/nowhere/at/all' does not exist"),
        ("worker", "A worker needs an app"),
        ("call", "Missing argument 'NAME'."),
        ("call x -a {}", "'{}' is not a JSON list"),
        ("call x -k [1", "'[1' is not JSON"),
        ("call x -k [1]", "'[1]' is not a JSON object"),
        ("call x --eta tomorrow", "'tomorrow' is not a time in ISO 8601"),
        ("call x --expires never", "'never' is neither a time in ISO 8601 nor seconds"),
        ("result x --timeout soon", "'soon' is not a valid float"),
    ],
)
def test_a_mistake_is_told_on_one_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


def test_color_is_for_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    run(["wroker"])
    assert "\x1b" not in capsys.readouterr().err
