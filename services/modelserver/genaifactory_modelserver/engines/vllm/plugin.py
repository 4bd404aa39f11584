"""Loaded by vLLM in each of its processes (entry point vllm.general_plugins): ends those whose server was killed.

vLLM's engine process does not notice when its parent is killed outright, and would keep its memory for nobody.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait


def register() -> None:
    """Follows the parent, in a process that has one."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, name="genaifactory-follow-parent", daemon=True).start()
