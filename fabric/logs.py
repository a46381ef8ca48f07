"""Decide how our processes log: JSON, one line a change, on stderr."""

from __future__ import annotations

import sys

import structlog

# Calico's severities as levels of the standard library.
_LEVELS = {"Trace": 0, "Debug": 10, "Info": 20, "Warning": 30, "Error": 40, "Fatal": 50}


def set_severity(severity: str) -> None:
    """Log from now on what is at least as severe (a word of FelixConfiguration's logSeverityScreen)."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[severity]))


def configure() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
