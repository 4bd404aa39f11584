"""Whether suites run their long form, with FULL=1 in the environment, or what still finds a fault in a few minutes."""

from __future__ import annotations

import os

FULL = os.environ.get("FULL") == "1"
