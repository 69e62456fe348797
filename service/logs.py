"""How the service's log lines look: logfmt for people, or one JSON object per line for collectors.

A message may be a `Line`, an event with named fields: logfmt writes them as `key=value`, JSON as
members.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

_PLAIN = re.compile(r"[!#-<>-~]+")  # printable ASCII without space, quote and equals sign
_log = logging.getLogger("fathom")


@dataclass(frozen=True, slots=True)
class Line:
    """A message with fields; None is a field without a value. Its text is the fields in logfmt.

    The text is made when a handler asks for it, so a level that is off costs nothing.
    """

    event: str
    fields: Mapping[str, str | int | float | None]

    def __str__(self) -> str:
        return " ".join(f"{name}={_plain(value)}" for name, value in self.fields.items())


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON.

    Its members: time (RFC 3339, UTC), level, logger, message, the fields, and any exception.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        members: dict[str, object] = {
            "time": time.removesuffix("+00:00") + "Z",
            "level": record.levelname,
            "logger": record.name,
        }
        if isinstance(record.msg, Line):
            members |= {"message": record.msg.event, **record.msg.fields}
        else:
            members["message"] = record.getMessage()
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        return json.dumps(members)


def configure(level: str, form: str) -> None:
    """Send every logger's lines to standard error.

    level, form: the settings log_level and log_format. A second call changes nothing.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    if form == "json":
        handler.setFormatter(JsonFormatter())
        # Python itself would print these as plain text.
        logging.captureWarnings(True)
        sys.excepthook = lambda *error: _log.critical(
            "the service ended with an unexpected error", exc_info=error
        )
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _plain(value: str | float | None) -> str:
    """A logfmt value.

    Quoted and escaped where needed, so that no caller's text can forge a line or a key.
    """
    if value is None:
        return "-"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
