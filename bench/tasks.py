"""The app that is measured: one task that does nothing, on the embedded default."""

from celeriac import Celeriac


def new_app() -> Celeriac:
    """An app of its own, so that each measurement can start with an empty database in a new folder."""
    app = Celeriac("bench")

    @app.task(name="bench.noop")
    def noop() -> int:
        return 1

    return app


app = new_app()
