"""Put a command line into the order click reads: general options, the command, the command's own options.

Celery 3 took every option after the command, Celery 5 takes the general ones before it, and scripts in the
field write all of it: ``celery -A proj worker``, ``celery worker -A proj``, ``celery -B -A proj worker``.
What belongs where is decided by the options themselves, so the order of the line does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import click

__all__ = ["Options", "arrange", "options_of"]

#: Names of options (``-A``, ``--app``) and whether each takes a value.
Options = Mapping[str, bool]


def options_of(command: click.Command) -> Options:
    """The options that `command` declares, ``--help`` among them."""
    context = click.Context(command, **command.context_settings)
    return {
        name: not (param.is_flag or param.count)
        for param in command.get_params(context)
        if isinstance(param, click.Option)
        for name in (*param.opts, *param.secondary_opts)
    }


def arrange(argv: Sequence[str], general: Options, options_for: Callable[[str], Options | None]) -> list[str]:
    """Return `argv` with the general options first, then the command, then everything else in its order.

    `options_for` gives the options of a command, None for what is not the name of one. The command is the
    first word that is one and is not the value of an option, read with the options of that very command:
    in ``-n call worker`` ``-n`` belongs to no ``call``, so the command is ``worker``.
    A line that makes no sense comes back such that click finds what is wrong with it. Raises
    `click.UsageError` where an option lacks its value.
    """
    commands = {word: own for word in argv if (own := options_for(word)) is not None}
    for command, own in commands.items():
        line = _arrange_for(command, argv, general, own)
        if line is not None:
            return line
    return _blame(argv, general, commands)


def _arrange_for(command: str, argv: Sequence[str], general: Options, own: Options) -> list[str] | None:
    """`argv` in click's order if it runs `command`, else None."""
    before: list[str] = []
    after: list[str] = []
    found = False
    for option, tokens in _units(argv, {**general, **own}):
        if option is None and not found:
            if tokens[0] != command:
                return None
            found = True
            after += tokens[1:]
        elif option is None:
            after += tokens
        elif found:
            # ``--help`` and the like exist on both sides: the command's own wins behind it
            (after if option in own or option not in general else before).extend(tokens)
        elif option in general:
            before += tokens
        elif option in own:
            after += tokens
        else:
            return None
    return [*before, command, *after] if found else None


def _units(argv: Sequence[str], known: Options) -> Iterator[tuple[str | None, list[str]]]:
    """Cut `argv` into options with their values, and words (option None); ``-BE`` becomes two options."""
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if token == "--":
            yield None, [token, *rest]
            return
        if token == "-" or not token.startswith("-"):
            yield None, [token]
            continue
        if token.startswith("--"):
            name, equals, _ = token.partition("=")
            complete = bool(equals) or not known.get(name, False)
        else:
            name = token[:2]
            if len(token) > 2 and known.get(name) is False:
                rest.insert(0, f"-{token[2:]}")
                token = name
            complete = len(token) > 2 or not known.get(name, False)
        if complete:
            yield name, [token]
        elif rest:
            yield name, [token, rest.pop(0)]
        else:
            raise click.BadOptionUsage(name, f"Option {name!r} requires an argument.")


def _blame(argv: Sequence[str], general: Options, commands: Mapping[str, Options]) -> list[str]:
    """A line that runs nothing: let the right side complain.

    An unknown option in front of a command is handed to that command, which can name the nearest of its own.
    """
    units = list(_units(argv, general))
    for i, (option, _) in enumerate(units):
        if option is None:
            break
        if option not in general:
            rest = [token for _, tokens in units[i:] for token in tokens]
            command = next((word for word in rest if word in commands), None)
            if command is not None:
                rest.remove(command)
                return [*(token for _, tokens in units[:i] for token in tokens), command, *rest]
            break
    return list(argv)
