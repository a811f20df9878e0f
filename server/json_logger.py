"""gunicorn's own log lines as JSON."""

from __future__ import annotations

from typing import Any

from gunicorn.glogging import Logger

from logs import JsonFormatter


class JsonLogger(Logger):
    """gunicorn's `logger_class` for `log_format: json`."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(JsonFormatter())
