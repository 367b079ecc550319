"""Snakemake's events as lines of JSON on standard output, for the command line to show."""

import json
import sys
from logging import LogRecord

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

WANTED = {
    LogEvent.JOB_INFO: ("jobid", "rule_name"),
    LogEvent.JOB_FINISHED: ("job_id",),
    LogEvent.PROGRESS: ("done", "total"),
}


class LogHandler(LogHandlerBase):
    """Writes the events that a person follows; the rest goes to the ordinary log."""

    def emit(self, record: LogRecord) -> None:
        """Write one event, if it is wanted."""
        event = getattr(record, "event", None)
        if event in WANTED:
            facts = {key: getattr(record, key, None) for key in WANTED[event]}
            print(json.dumps({"event": str(event), **facts}), file=sys.stdout, flush=True)

    @property
    def writes_to_stream(self) -> bool:
        """Snakemake keeps its own log on standard error as well."""
        return False

    @property
    def writes_to_file(self) -> bool:
        """It writes no file."""
        return False

    @property
    def has_filter(self) -> bool:
        """It leaves filtering to Snakemake."""
        return False

    @property
    def has_formatter(self) -> bool:
        """JSON needs none."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """No graph is drawn."""
        return False
