"""`tsrun serve` with the engine of `willing_engine.py`."""

from __future__ import annotations

import sys

from tsrun.cli import run
from tsrun.serve import engine_client

if __name__ == "__main__":
    engine_client.ENGINE_MODULE = "tests.serve.willing_engine"
    sys.exit(run())
