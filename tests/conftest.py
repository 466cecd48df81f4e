"""For all tests: the repository's root on the path, so that they may import `tests.*`, and threads that wait asleep."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tsrun.threads import wait_asleep

wait_asleep()  # before torch is loaded, so that tests are not slow when they share the machine
