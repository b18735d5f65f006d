"""Logs as events, in which no secret leaves."""

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog

from worker.card_numbers import mask_text
from worker.client_secret import ClientSecret

# Last line of defence: whatever slipped into a log call is taken out again before it is written.
_SECRETS: Final = re.compile(
    r"(?:sk|rk)_(?:live|test)_\w+|whsec_\w+|pi_\w+_secret_\w+|seti_\w+_secret_\w+|(?<=://)[^\s/@:]*:[^\s@]+(?=@)"
)
# Their DEBUG lines hold whole requests and answers, client secrets included.
_LOUD_LIBRARIES: Final = ("stripe", "aiohttp", "sqlalchemy", "alembic", "asyncio")
# Each lost connection is told once, by us; these tell it again as errors.
_REPEATING_LIBRARIES: Final = ("aio_pika", "aiormq", "pamqp")


def configure_logging(*, level: str, as_json: bool, stream: TextIO = sys.stderr) -> None:
    """Set up structlog, and the standard library's loggers beside it, for this process."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.format_exc_info,
        scrub,
        # Our own words: not to be looked through.
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = as_line if as_json else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.INFO), force=True)
    for name in _LOUD_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _REPEATING_LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL)


# Smaller numbers have too few digits to be a card's.
LEAST_CARD: Final = 10**11


def scrub(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: no key, client secret, password or card number leaves in a log line."""
    return {key: _scrubbed(value) for key, value in event.items()}


# Made once: json.dumps would make one for each line. What reaches it is scrubbed, and so plain; the rest is a fault.
_ENCODER: Final = json.JSONEncoder(default=lambda value: _scrubbed(repr(value)))


def as_line(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    """A structlog renderer: one line of JSON."""
    return _ENCODER.encode(event)


def _scrubbed(value: Any) -> Any:
    if isinstance(value, str):
        # Each kind of secret has one of these two in it, and most values neither.
        return mask_text(_SECRETS.sub("***", value) if "_" in value or "@" in value else value)
    if isinstance(value, bool | float) or value is None or (isinstance(value, int) and abs(value) < LEAST_CARD):
        return value
    if isinstance(value, ClientSecret):
        return repr(value)
    if isinstance(value, dict):
        return {_scrubbed(str(key)): _scrubbed(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_scrubbed(inner) for inner in value]
    return _scrubbed(str(value))
