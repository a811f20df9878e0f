"""Log lines: as text or as JSON, and one line for each picture."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Literal

from observer import ONLY_ENGINE, DrawingReport, Observer

log = logging.getLogger("easel.pictures")

LogFormat = Literal["text", "json"]
_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def formatter(log_format: LogFormat) -> logging.Formatter:
    """For all handlers of a server."""
    return JsonFormatter() if log_format == "json" else logging.Formatter(_TEXT)


def facts(**values: Any) -> dict[str, Any]:
    """For a logger's `extra`: fields that a line in JSON has in addition to its text. None is left out."""
    return {"facts": {name: value for name, value in values.items() if value is not None}}


class JsonFormatter(logging.Formatter):
    """One JSON object for each record: time (RFC 3339, UTC), level, logger, message, the facts, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.created % 1 * 1000):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        more = getattr(record, "facts", None)
        if isinstance(more, Mapping):
            entry |= {name: value for name, value in more.items() if name not in entry}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit: the record is all that there is
        return f"{record.msg} {record.args!r}"


class PictureLog(Observer):
    """Logs each picture, and each drawing that ends early. `with_prompts`: the owner wants to read prompts in the log."""

    def __init__(self, *, with_prompts: bool) -> None:
        self._with_prompts = with_prompts

    def drawing(self, report: DrawingReport) -> None:
        prompt = report.prompt if self._with_prompts else None
        key = report.key or None
        who = f" for {_printable(report.key)}" if report.key else ""
        asked = f": {json.dumps(prompt, ensure_ascii=False)}" if prompt is not None else ""
        common = {"request_id": report.request_id, "key": key, "model": report.model, "prompt": prompt}
        for picture in report.pictures:
            engine = None if picture.engine == ONLY_ENGINE else picture.engine
            log.info(
                "%s drew %s%s, %s, seed %s, image %s, waited %.2f s, rendered %.2f s%s%s",
                *(report.request_id or "-", report.model, who, picture.size),
                *("none" if picture.seed is None else picture.seed, picture.image or "not kept"),
                *(picture.waited_s, picture.run_s, f" on {engine}" if engine else "", asked),
                extra=facts(
                    **common,
                    seed=picture.seed,
                    size=picture.size,
                    image=picture.image or None,
                    wait_s=round(picture.waited_s, 3),
                    render_s=round(picture.run_s, 3),
                    engine=engine,
                ),
            )
        if report.result != "done":
            log.log(
                logging.WARNING if report.result == "failed" else logging.INFO,
                "%s drawing with %s%s %s: %s%s",
                *(report.request_id or "-", report.model, who, report.result),
                *(report.code or "the client has hung up", asked),
                extra=facts(**common, result=report.result, code=report.code or None),
            )


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
