from __future__ import annotations

import logging
import logging.config
import os
import pty
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac import log
from celeriac.errors import ImproperlyConfigured


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leave the loggers, streams and the task source of this process as they were."""
    root, ours = logging.getLogger(), logging.getLogger("celeriac")
    before = [(each, each.level, each.handlers[:]) for each in (root, ours)]
    streams, source = (sys.stdout, sys.stderr), log._task_source
    yield
    sys.stdout, sys.stderr = streams
    log.set_task_source(source)
    for logger, level, handlers in before:
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)


def python(code: str, *, env: dict[str, str] | None = None) -> str:
    """What a process of its own writes to standard error."""
    code = "import logging\nfrom celeriac import log\n" + textwrap.dedent(code)
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **(env or {})},
    )
    return run.stderr


def test_lines_have_celerys_format() -> None:
    out = python("""
        log.configure("INFO")
        logging.getLogger("celeriac.worker").info("Task %s received", "x[1]")
        logging.getLogger("celeriac.worker").debug("not this")
    """)
    assert re.fullmatch(
        r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}: INFO/MainProcess\] Task x\[1\] received\n", out
    )


def test_task_loggers_have_the_task_format() -> None:
    out = python("""
        log.configure("INFO", process_name="Executor-1", datefmt="now")
        logger = log.get_task_logger("proj.tasks")
        logger.info("outside")
        log.set_task_source(lambda: ("proj.add", "id-1"))
        logger.info("inside")
    """)
    assert out.splitlines() == [
        "[now: INFO/Executor-1] ???[???]: outside",
        "[now: INFO/Executor-1] proj.add[id-1]: inside",
    ]


def test_formats_can_be_given() -> None:
    out = python("""
        log.configure("INFO", format="%(asctime)s W %(message)s", datefmt="D",
                      task_format="%(asctime)s T %(task_id)s %(message)s", task_datefmt="E")
        log.set_task_source(lambda: ("proj.add", "id-1"))
        logging.getLogger("celeriac").info("a")
        log.get_task_logger("proj").info("b")
    """)
    assert out.splitlines() == ["D W a", "E T id-1 b"]


def test_all_records_can_name_the_task() -> None:
    out = python("""
        log.configure("INFO", format="%(task_name)s[%(task_id)s] %(message)s")
        log.set_task_source(lambda: ("proj.add", "id-1"))
        logging.getLogger("celeriac.executor").info("a")
    """)
    assert out == "proj.add[id-1] a\n"


def test_exceptions_are_written_in_full() -> None:
    out = python("""
        log.configure("ERROR", format="%(message)s")
        try:
            1 / 0
        except ZeroDivisionError:
            logging.getLogger("celeriac").exception("oh")
    """)
    assert out.startswith("oh\nTraceback")
    assert out.endswith("ZeroDivisionError: division by zero\n")


def test_what_was_configured_before_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    out = python(f"""
        log.configure("DEBUG", file={str(file)!r})
        log.configure("INFO", format="%(message)s")
        logging.getLogger("celeriac").info("once")
        logging.getLogger("celeriac").debug("never")
    """)
    assert out == "once\n"
    assert file.read_text() == ""


def test_file_is_appended_to_by_many(tmp_path: Path) -> None:
    file = tmp_path / "w.log"
    for name in ("MainProcess", "Executor-1"):
        out = python(f"""
            log.configure("INFO", file={str(file)!r}, format="%(processName)s %(message)s", process_name={name!r})
            logging.getLogger("celeriac").info("ü")
        """)
        assert out == ""
    assert file.read_text("utf-8") == "MainProcess ü\nExecutor-1 ü\n"


def test_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ImproperlyConfigured, match=r"cannot write the log file '.*/none/w\.log': No such file"
    ):
        log.configure("INFO", file=str(tmp_path / "none" / "w.log"))
    assert logging.getLogger("celeriac").handlers == []


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ("info", 20),
        ("INFO", 20),
        ("Warn", 30),
        (" WARNING ", 30),
        ("FATAL", 50),
        ("15", 15),
        (15, 15),
        (0, 0),
    ],
)
def test_level(given: str | int, number: int) -> None:
    assert log.level_number(given) == number


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("INF0", "there is no log level 'INF0': did you mean 'INFO'?"),
        ("VERBOSE", "there is no log level 'VERBOSE': use DEBUG, INFO, WARNING, ERROR or CRITICAL"),
        ("", "there is no log level '': use"),
        (True, "there is no log level True"),
    ],
)
def test_unknown_level(given: str, says: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=re.escape(says)):
        log.configure(given)


def test_level_name() -> None:
    assert (log.level_name("warn"), log.level_name(10)) == ("WARNING", "DEBUG")


# -- the root logger ------------------------------------------------------------------------------------------------


def test_root_logger_is_not_touched() -> None:
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    log.configure("DEBUG")
    assert (root.level, root.handlers) == before


def test_caplog_and_other_handlers_of_the_program_get_the_records(caplog: pytest.LogCaptureFixture) -> None:
    log.configure("INFO")
    logging.getLogger("celeriac.worker").info("hello")
    assert caplog.messages == ["hello"]


def test_program_with_handlers_on_root_sees_each_record_once() -> None:
    out = python("""
        logging.basicConfig(format="ROOT %(message)s")
        log.configure("INFO", format="OURS %(message)s")
        logging.getLogger("celeriac").info("a")
        logging.getLogger("mine").warning("b")
    """)
    assert out == "ROOT a\nROOT b\n"


def test_null_handler_on_root_hides_nothing() -> None:
    out = python("""
        logging.getLogger().addHandler(logging.NullHandler())
        log.configure("INFO", format="%(message)s")
        logging.getLogger("celeriac").info("a")
    """)
    assert out == "a\n"


def test_log_file_gets_the_records_in_any_case(tmp_path: Path) -> None:
    file = tmp_path / "w.log"
    python(f"""
        logging.basicConfig()
        log.configure("INFO", file={str(file)!r}, format="%(message)s")
        logging.getLogger("celeriac").info("a")
    """)
    assert file.read_text() == "a\n"


def test_loggers_that_dict_config_disabled_speak_again() -> None:
    out = python("""
        import logging.config
        logging.getLogger("celeriac.worker")
        logging.config.dictConfig({"version": 1})
        log.configure("INFO", format="%(message)s")
        logging.getLogger("celeriac.worker").info("a")
    """)
    assert out == "a\n"


def test_root_logger_is_taken_when_asked() -> None:
    out = python("""
        logging.basicConfig(format="ROOT %(message)s")
        log.configure("INFO", format="OURS %(message)s", hijack_root=True)
        logging.getLogger("celeriac").info("a")
        logging.getLogger("mine").info("b")
        logging.getLogger("mine").debug("c")
        log.configure("INFO", format="AGAIN %(message)s", hijack_root=True)
        logging.getLogger("mine").info("d")
    """)
    assert out == "OURS a\nOURS b\nAGAIN d\n"


# -- task loggers ---------------------------------------------------------------------------------------------------


def test_task_logger_keeps_its_name_and_hangs_below_celeriac_task() -> None:
    logger = log.get_task_logger("test_log.named")
    assert logger is logging.getLogger("test_log.named")
    assert logger.parent is logging.getLogger("celeriac.task")


def test_records_of_task_loggers_name_the_task_for_every_handler(caplog: pytest.LogCaptureFixture) -> None:
    logger = log.get_task_logger("test_log.records")
    log.get_task_logger("test_log.records")
    logger.warning("outside")
    log.set_task_source(lambda: ("proj.add", "id-1"))
    logger.warning("inside")
    named = [(each.task_name, each.task_id) for each in caplog.records]  # type: ignore[attr-defined]
    assert named == [("???", "???"), ("proj.add", "id-1")]


@pytest.mark.parametrize("name", ["celeriac.task", "celeriac", "root", ""])
def test_task_logger_cannot_be_one_of_those_above(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a task logger"):
        log.get_task_logger(name)


# -- colour ---------------------------------------------------------------------------------------------------------


def on_terminal(code: str, **env: str) -> str:
    """What a process writes to standard error when that is a terminal."""
    code = "import logging\nfrom celeriac import log\n" + code
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | env
    ours, theirs = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, env=environment)
        os.write(theirs, b"\0")  # the line discipline would hold back nothing, but reading must end somewhere
        out = b""
        while not out.endswith(b"\0"):
            out += os.read(ours, 4096)
    finally:
        os.close(theirs)
        os.close(ours)
    return out[:-1].decode().replace("\r\n", "\n")


LINES = """
log.configure("INFO", format="%(message)s", color={color})
logging.getLogger("celeriac").info("a")
logging.getLogger("celeriac").error("b")
"""


def test_terminal_gets_colours() -> None:
    assert on_terminal(LINES.format(color=None)) == "a\n\033[1;31mb\033[0m\n"


def test_terminal_without_colours_when_told() -> None:
    assert on_terminal(LINES.format(color=False)) == "a\nb\n"
    assert on_terminal(LINES.format(color=None), NO_COLOR="1") == "a\nb\n"
    assert "\033" in on_terminal(LINES.format(color=True), NO_COLOR="1")


def test_no_colours_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "w.log"
    assert python(LINES.format(color=True)) == "a\nb\n"
    python(f'log.configure("INFO", file={str(file)!r}, format="%(message)s", color=True)\n'
           'logging.getLogger("celeriac").error("b")')  # fmt: skip
    assert file.read_text() == "b\n"


# -- what tasks print -----------------------------------------------------------------------------------------------


def test_print_is_logged_line_by_line() -> None:
    out = python("""
        import sys
        log.configure("INFO", format="%(levelname)s %(name)s %(message)s")
        log.redirect_stdouts("INFO")
        print("a", "b")
        print("two\\nlines  ", file=sys.stderr)
        print()
        print("no end", end="")
        print("... at last")
        sys.stdout.write("rest")
        sys.stdout.flush()
        sys.stdout.flush()
    """)
    assert out.splitlines() == [
        f"INFO celeriac.redirected {line}" for line in ("a b", "two", "lines", "no end... at last", "rest")
    ]


def test_print_is_not_redirected_unless_asked() -> None:
    out = python("""
        import sys
        log.configure("INFO")
        print("a", file=sys.stderr)
    """)
    assert out == "a\n"


def test_failing_handler_does_not_log_its_failure_for_ever() -> None:
    out = python("""
        log.configure("INFO", format="%(message)s %(nothing)s")
        log.redirect_stdouts()
        print("a")
    """)
    assert "KeyError: 'nothing'" in out
    assert out.count("--- Logging error ---") == 1


def test_redirected_stream_looks_like_a_file() -> None:
    log.redirect_stdouts()
    assert sys.stdout.writable()
    assert not sys.stdout.isatty()
    assert sys.stdout.write("") == 0
