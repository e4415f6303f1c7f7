"""The ``celeriac`` command: one file per subcommand, each imported only when it is asked for.

`main`: the group and what failures look like · `arguments`: options before or after the command ·
`options`: declarations that several commands share · `console`: output for people.
"""
