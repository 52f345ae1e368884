"""Where the process is in its life. Set by the signal handler, read by every answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Lifecycle:
    """Shared between the server and the application."""

    draining: bool = False
    """SIGTERM has arrived: still answering, but every connection is closed after its next answer."""
