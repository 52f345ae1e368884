"""Logs: one JSON object a line on standard output."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from greenlight_service.settings import Settings


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON with the colour and the version."""

    def __init__(self, colour: str, version: str) -> None:
        super().__init__()
        self._common = {"colour": colour, "version": version}

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line; `extra={"fields": {...}}` adds fields, which never replace the standard ones."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._common,
        }
        for key, value in getattr(record, "fields", {}).items():
            line.setdefault(key, value)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(settings: Settings) -> None:
    """Sends every logger's records to standard output as JSON."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(settings.colour, settings.version))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    # uvicorn tells each step of its start and stop; the server's own lines say the same with fields.
    logging.getLogger("uvicorn").setLevel(max(root.level, logging.WARNING))
