"""Settings of the service, all read from the environment.

An empty variable counts as not set, so that a template can leave one blank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class SettingsError(ValueError):
    """A setting has a value that cannot be used; the message says which and what is allowed."""


@dataclass(frozen=True)
class Settings:
    """What the service was told to do. `from_environment` names the variables."""

    device: str = "cuda"
    """Where the model runs: "cuda" (default) or "cpu". The CPU is never a silent fallback."""
    colour: str = "none"
    """The slot this process runs in: blue, green, or none outside a release."""
    version: str = "unknown"
    """The released version, as it appears in answers and metrics."""
    drain_seconds: float = 5.0
    """How long the process keeps accepting requests after SIGTERM."""
    finish_seconds: float = 20.0
    """How long requests in flight may take once the drain time is over."""
    host: str = "0.0.0.0"  # noqa: S104 - a container serves on every address of its pod
    port: int = 8080
    """TCP port; 0 lets the kernel choose."""
    threads: int = 1
    """Threads that PyTorch uses for one forward pass."""
    queue: int = 256
    """Requests that may wait for the model; more are refused with 503."""
    max_rows: int = 256
    """Images in one request."""
    max_body_bytes: int = 1024 * 1024
    """Size of a request's body in bytes; larger ones are refused with 413."""
    body_seconds: float = 30.0
    """Time that a client may take to send a request's body."""
    model_folder: Path = Path("/opt/app/model")
    """Folder with weights.safetensors and model.json."""
    log_level: str = "info"
    """debug, info, warning or error."""
    access_log: bool = False
    """Log each request as one line."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Reads the GREENLIGHT_* variables; raises SettingsError for a value that makes no sense."""
        read = _Reader(environment)
        return cls(
            device=read.choice("GREENLIGHT_DEVICE", cls.device, ("cuda", "cpu")),
            colour=read.text("GREENLIGHT_COLOUR", cls.colour),
            version=read.text("GREENLIGHT_VERSION", cls.version),
            drain_seconds=read.number("GREENLIGHT_DRAIN_SECONDS", cls.drain_seconds, 0, 3600),
            finish_seconds=read.number("GREENLIGHT_FINISH_SECONDS", cls.finish_seconds, 0, 3600),
            host=read.text("GREENLIGHT_HOST", cls.host),
            port=read.whole("GREENLIGHT_PORT", cls.port, 0, 65535),
            threads=read.whole("GREENLIGHT_THREADS", cls.threads, 1, 1024),
            queue=read.whole("GREENLIGHT_QUEUE", cls.queue, 1, 100_000),
            max_rows=read.whole("GREENLIGHT_MAX_ROWS", cls.max_rows, 1, 65_536),
            max_body_bytes=read.whole("GREENLIGHT_MAX_BODY_BYTES", cls.max_body_bytes, 1024, 1 << 30),
            body_seconds=read.number("GREENLIGHT_BODY_SECONDS", cls.body_seconds, 0.1, 3600),
            model_folder=Path(read.text("GREENLIGHT_MODEL_FOLDER", str(cls.model_folder))),
            log_level=read.choice("GREENLIGHT_LOG_LEVEL", cls.log_level, ("debug", "info", "warning", "error")),
            access_log=read.choice("GREENLIGHT_ACCESS_LOG", "off", ("on", "off")) == "on",
        )


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, name: str, default: str) -> str:
        return self._environment.get(name, "").strip() or default

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self.text(name, default)
        if value not in allowed:
            raise SettingsError(f"{name} is {value!r}: use one of {', '.join(allowed)}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.text(name, str(default))
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            raise SettingsError(f"{name} is {value!r}: use a number from {low:g} to {high:g}")
        return number

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.text(name, str(default))
        try:
            number = int(value)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise SettingsError(f"{name} is {value!r}: use a whole number from {low} to {high}")
        return number
