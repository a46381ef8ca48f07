"""`python -m bgp.speaker --run-dir DIR`: runs the speaker until SIGTERM, logging one JSON line a change.

SIGTERM leaves the sessions to the peers' graceful restart. To take them down, hand down a Wanted without
sessions first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

from bgp.speaker.daemon import Daemon
from fabric.errors import FabricError


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


async def run(run_dir: Path) -> None:
    serving = asyncio.ensure_future(Daemon(run_dir).serve())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        logging.getLogger(__name__).info("stopped; peers hold our routes for their restart time")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bgp.speaker", description="fabricctl's BGP speaker")
    parser.add_argument("--run-dir", type=Path, default=Path("/run/fabricctl"))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        asyncio.run(run(parser.parse_args().run_dir))
    except FabricError as err:
        print(f"fabricctl speaker: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
