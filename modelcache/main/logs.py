"""Logging of what runs for long: lines on standard error. Nothing below knows how."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from modelcache.config import AgentSettings

_WATCHED: Final = ("uvicorn.error", "asyncio")  # libraries whose complaints are ours to see


def logger_for(settings: AgentSettings) -> Any:  # noqa: ANN401 - structlog's loggers have no one type
    """A logger of lines on standard error, with a time and a level each."""
    import structlog  # noqa: PLC0415 - see the package

    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    render: Any = structlog.processors.JSONRenderer()
    if settings.log_format == "console":
        render = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    log = structlog.get_logger()
    for name in _WATCHED:
        library = logging.getLogger(name)
        library.addHandler(_Forward(log))
        library.setLevel(logging.WARNING)
        library.propagate = False
    return log


class _Forward(logging.Handler):
    """What a library logs, as a line like ours."""

    def __init__(self, log: Any) -> None:  # noqa: ANN401 - see `logger_for`
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One record; its traceback, if it has one, as text."""
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        fields = {"traceback": trace} if trace else {}
        self._log.log(
            record.levelno, "library", library=record.name, message=record.getMessage(), **fields
        )
