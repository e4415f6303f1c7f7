"""Options may stand anywhere: `arrange` puts them where click wants them."""

import click
import pytest

from celeriac.cli.arguments import arrange, options_of

GENERAL = {"-A": True, "--app": True, "-q": False, "-C": False, "--help": False, "--workdir": True}
COMMANDS = {
    "worker": {
        "-l": True,
        "--loglevel": True,
        "-B": False,
        "-E": False,
        "-c": True,
        "-n": True,
        "-O": True,
        "--without-gossip": False,
        "--help": False,
    },
    "call": {"-a": True, "--args": True, "--help": False},
    "beat": {},
}


def arranged(line: str) -> str:
    return " ".join(arrange(line.split(), GENERAL, COMMANDS.get))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # Celery 5, 3, 4
        ("-A proj worker -l info", "-A proj worker -l info"),
        ("worker -A proj -l info", "-A proj worker -l info"),
        ("-B -A proj worker", "-A proj worker -B"),
        ("-l info -A proj worker -c 4", "-A proj worker -l info -c 4"),
        ("worker --app=proj --loglevel=info", "--app=proj worker --loglevel=info"),
        # general options alone, and none
        ("worker", "worker"),
        ("-q worker", "-q worker"),
        ("worker --workdir /x -C", "--workdir /x -C worker"),
        # the value of an option is never the command, nor an option
        ("-A worker worker", "-A worker worker"),
        ("-n call worker", "worker -n call"),
        ("worker -n call", "worker -n call"),
        ("-A -q worker", "-A -q worker"),
        ("call -A proj x -a [1]", "-A proj call x -a [1]"),
        # short options in one word, values attached
        ("-BE -Aproj worker", "-Aproj worker -B -E"),
        ("worker -BqE", "-q worker -B -E"),
        ("worker -Ofair -c4 -Blinfo", "worker -Ofair -c4 -B -linfo"),
        ("worker -Bl info", "worker -B -l info"),
        # what belongs to both sides stays on its side
        ("--help worker", "--help worker"),
        ("worker --help", "worker --help"),
        # words keep their order; behind -- everything is a word
        ("worker a=1 -A proj b=2", "-A proj worker a=1 b=2"),
        ("call x -- -A -q", "call x -- -A -q"),
        ("call -", "call -"),
    ],
)
def test_options_go_to_their_side_of_the_command(line: str, expected: str) -> None:
    assert arranged(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ""),
        ("-A proj", "-A proj"),
        ("--help", "--help"),
        ("wroker -A proj", "wroker -A proj"),
        ("foo worker", "foo worker"),
        ("-- worker", "-- worker"),
        ("worker --bogus", "worker --bogus"),
        # an unknown option in front of a command is that command's to complain about
        ("--logfle x worker", "worker --logfle x"),
        ("-A proj --logfle=x worker -B", "-A proj worker --logfle=x -B"),
        ("-l info beat", "beat -l info"),
        ("--bogus x", "--bogus x"),
    ],
)
def test_a_line_without_sense_is_left_to_click(line: str, expected: str) -> None:
    assert arranged(line) == expected


@pytest.mark.parametrize("line", ["worker -A", "worker --loglevel", "worker -Bl", "-B worker --app"])
def test_a_missing_value_is_named_and_never_taken_from_the_command(line: str) -> None:
    with pytest.raises(click.UsageError, match="requires an argument"):
        arranged(line)


def test_arranging_an_arranged_line_changes_nothing() -> None:
    line = arranged("-BE worker -A proj x=1 -linfo -q")
    assert arranged(line) == line


def test_options_are_read_from_the_command_itself() -> None:
    @click.command()
    @click.option("-n", "--name")
    @click.option("--fast/--slow")
    @click.option("-v", count=True)
    @click.argument("words", nargs=-1)
    def command() -> None: ...

    assert options_of(command) == {
        "-n": True,
        "--name": True,
        "--fast": False,
        "--slow": False,
        "-v": False,
        "--help": False,
    }
