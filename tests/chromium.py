"""A headless Chromium, spoken to over a pipe: what a page logs, asks for and draws."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

# Chromium reads commands from descriptor 3 and writes to 4, and only there.
_START = """
import os, sys
commands, answers = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2]))
while min(commands, answers) < 5:
    commands, answers = os.dup(commands), os.dup(answers)
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-pipe",
)


def chromium_path() -> str | None:
    """Return the first Chromium on the PATH, `None` if there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Chromium:
    """A page in a browser of its own; `events` holds all that it said, in order."""

    def __init__(self, binary: str, profile: Path, timeout: float = 60.0) -> None:
        self.events: list[dict[str, Any]] = []
        self._ids, self._left, self._timeout = itertools.count(1), b"", timeout
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        words = [sys.executable, "-c", _START, str(to_read), str(to_write), binary, *_FLAGS]
        self._process = subprocess.Popen(
            [*words, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait(self._timeout)
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its answer; what else is said goes into `events`."""
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + self._timeout
        while True:
            answer = self._receive(end)
            if answer.get("id") != number:
                self.events.append(answer)
            elif "error" in answer:
                raise AssertionError(f"{method}: {answer['error']}")
            else:
                return answer["result"]

    def open(self, url: str) -> None:
        """Load a page and wait for its load event."""
        self.call("Page.navigate", url=url)
        end = time.monotonic() + self._timeout
        while not self.said("Page.loadEventFired"):
            self.events.append(self._receive(end))

    def resize(self, width: int) -> None:
        """Give the window a width, below 600 pixels that of a phone."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    def said(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of all events of a kind."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise AssertionError("chromium does not answer")
            piece = os.read(self._read, 1 << 16)
            if not piece:
                raise AssertionError(f"chromium ended with {self._process.poll()}")
            self._left += piece
        line, self._left = self._left.split(b"\0", 1)
        return json.loads(line)
