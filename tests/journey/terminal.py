"""Terminals for a program that keeps running and for commands that end. Standard library only."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\r")
_COMMAND_TIMEOUT_SECONDS = 120.0


def typed(command: str, folder: Path, *, timeout_seconds: float = _COMMAND_TIMEOUT_SECONDS) -> tuple[int, str]:
    """Types a command and waits for its end; the exit code, and stdout and stderr together.

    Raises AssertionError when it does not end in time.
    """
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"{command} did not end in {timeout_seconds} s:\n{output}") from None
    return process.returncode, output


class Running:
    """A command in a terminal of its own that runs until Ctrl-C."""

    def __init__(self, command: str, folder: Path) -> None:
        own, its = pty.openpty()
        self._terminal = own
        self._output = bytearray()
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
            env={**os.environ, "COLUMNS": "120", "TERM": "xterm-256color"},
        )
        os.close(its)
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def output(self) -> str:
        """What the terminal shows so far, without colours."""
        return _CONTROL.sub("", self._output.decode(errors="replace"))

    def wait_for(self, text: str, *, timeout_seconds: float) -> None:
        """Raises AssertionError with the output when the text does not come in time or the command ends before."""
        deadline = time.monotonic() + timeout_seconds
        while text not in self.output:
            ended = self._process.poll()
            assert ended is None, f"it ended with {ended} before '{text}' came:\n{self.output}"
            assert time.monotonic() < deadline, f"'{text}' did not come in {timeout_seconds} s:\n{self.output}"
            time.sleep(0.1)

    def interrupt(self, *, timeout_seconds: float = 30.0) -> None:
        """Presses Ctrl-C and waits for the end. Raises AssertionError when it goes on."""
        assert self._process.poll() is None, f"it runs no more:\n{self.output}"
        os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it runs on {timeout_seconds} s after Ctrl-C:\n{self.output}") from None

    def close(self) -> None:
        """Ends it in any case."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._terminal, 65536)
            except OSError:  # the other end is closed
                return
            if not piece:
                return
            self._output += piece
