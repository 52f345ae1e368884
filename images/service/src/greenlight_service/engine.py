"""Runs the model: loads it, warms it up, and answers one batch at a time off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenlight_service.faults import NotReadyError, OverloadedError
from greenlight_service.requests import PIXELS
from greenlight_service.settings import Settings

if TYPE_CHECKING:
    import torch

    from greenlight_service.model import DigitClassifier

log = logging.getLogger(__name__)

WARM_UP_ROWS = (1, 1, 1, 8, 1)
"""Batch sizes of the warm-up passes: the first pays for lazy initialisation, the last shows the usual time."""


@dataclass(frozen=True)
class Answer:
    """The model's answer to one request."""

    outputs: list[list[float]]
    """Ten probabilities for each image."""
    classes: list[int]
    """The likeliest digit for each image."""
    seconds: float
    """Time of the forward pass, without waiting."""


@dataclass(frozen=True)
class _Loaded:
    model: DigitClassifier
    device: torch.device
    facts: dict[str, Any]
    forward: Callable[[DigitClassifier, torch.Tensor], torch.Tensor]


class Engine:
    """Owns the model. One thread runs every forward pass, so passes never compete for cores or the GPU.

    PyTorch is imported in that thread as well: /health answers while the import and the CUDA context take seconds.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self._loaded: _Loaded | None = None
        self._reason = "the model is being loaded"
        self._waiting = 0

    @property
    def reason(self) -> str:
        """Why the engine is not ready; empty when it is."""
        return self._reason

    @property
    def waiting(self) -> int:
        """Requests that wait for the model or are with it."""
        return self._waiting

    async def load(self) -> None:
        """Loads and warms up the model. A failure does not raise: it becomes the reason, which /ready shows."""
        loop = asyncio.get_running_loop()
        try:
            self._loaded = await loop.run_in_executor(self._thread, self._load)
        except Exception as fault:  # whatever it is, the process must stay up to say so
            self._reason = str(fault) or repr(fault)
            log.error("not ready: %s", self._reason, exc_info=not isinstance(fault, NotReadyError))
            return
        self._reason = ""
        log.info("ready", extra={"fields": self._loaded.facts})

    async def infer(self, rows: list[list[float]]) -> Answer:
        """Answers a request's images. Raises NotReadyError or OverloadedError without having tried."""
        loaded = self._loaded
        if loaded is None:
            raise NotReadyError(self._reason)
        if self._waiting >= self._settings.queue:
            raise OverloadedError(f"{self._waiting} requests wait for the model")
        self._waiting += 1
        pass_ = asyncio.get_running_loop().run_in_executor(self._thread, _infer, loaded, rows)
        # Counted by the pass and not by the caller: a client that went away leaves its work in the queue.
        pass_.add_done_callback(self._one_less)
        return await pass_

    def _one_less(self, pass_: asyncio.Future[Answer]) -> None:
        self._waiting -= 1
        if not pass_.cancelled():
            pass_.exception()  # read, so that an answer nobody waits for is not reported as never retrieved

    async def facts(self) -> dict[str, Any]:
        """What the model runs on, for /ready. Raises NotReadyError. Fields that do not apply are None."""
        loaded = self._loaded
        if loaded is None:
            raise NotReadyError(self._reason)
        memory: tuple[int | None, int | None] = (None, None)
        if loaded.device.type == "cuda":
            memory = await asyncio.to_thread(_gpu_memory, loaded.device)
        return {**loaded.facts, "gpuMemoryUsedBytes": memory[0], "gpuMemoryTotalBytes": memory[1]}

    def close(self) -> None:
        """Ends the thread; requests that still wait are dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _load(self) -> _Loaded:
        started = time.perf_counter()
        import torch

        torch.set_num_threads(self._settings.threads)
        device = _device(torch, self._settings.device)
        # Imported here because they import PyTorch.
        from greenlight_service.forward import probabilities
        from greenlight_service.model import WeightsError, load

        try:
            model, checksum = load(self._settings.model_folder)
        except WeightsError as fault:
            raise NotReadyError(str(fault)) from fault
        model = model.to(device)
        imported = time.perf_counter()
        loaded = _Loaded(model, device, {}, probabilities)
        try:
            for rows in WARM_UP_ROWS:
                last = _infer(loaded, [[0.0] * PIXELS] * rows)
        except Exception as fault:
            raise NotReadyError(f"the warm-up failed: {fault}") from fault
        facts = _device_facts(torch, device) | {"weightsSha256": checksum, "uid": os.getuid()}
        log.info(
            "model loaded and warmed up",
            extra={
                "fields": {
                    "loadSeconds": round(imported - started, 3),
                    "warmUpSeconds": round(time.perf_counter() - imported, 3),
                    "passSeconds": round(last.seconds, 6),
                }
            },
        )
        return _Loaded(model, device, facts, probabilities)


def _infer(loaded: _Loaded, rows: list[list[float]]) -> Answer:
    import torch

    started = time.perf_counter()
    with torch.inference_mode():
        images = torch.tensor(rows, dtype=torch.float32).to(loaded.device)
        answer = loaded.forward(loaded.model, images)
        classes: list[int] = answer.argmax(dim=1).tolist()
        outputs: list[list[float]] = answer.tolist()
    return Answer(outputs, classes, time.perf_counter() - started)


def _device(torch: Any, name: str) -> torch.device:
    if name == "cuda":
        if torch.version.cuda is None:
            raise NotReadyError(
                f"the device is cuda, but this PyTorch ({torch.__version__}) is built without CUDA: "
                "use a CUDA base image, or ask for the CPU with GREENLIGHT_DEVICE=cpu"
            )
        if not torch.cuda.is_available():
            raise NotReadyError(
                "the device is cuda, but PyTorch finds no CUDA device: "
                "give the container a GPU and a fitting driver, or ask for the CPU with GREENLIGHT_DEVICE=cpu"
            )
    device: torch.device = torch.device(name)
    return device


def _device_facts(torch: Any, device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "device": device.type,
        "deviceName": None,
        "torch": torch.__version__,
        "cuda": None,
        "cudnn": None,
        "driver": None,
        "computeCapability": None,
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        facts |= {
            "deviceName": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": str(torch.backends.cudnn.version()),
            "driver": driver_version(Path("/proc/driver/nvidia/version")),
            "computeCapability": f"{major}.{minor}",
        }
    return facts


def driver_version(file: Path) -> str | None:
    """Returns the NVIDIA kernel driver's version from its /proc file, or None where it cannot be read."""
    with contextlib.suppress(OSError):
        found = re.search(r"Kernel Module\s.*?\b(\d{3,}(?:\.\d+)+)", file.read_text())
        return found.group(1) if found else None
    return None


def _gpu_memory(device: torch.device) -> tuple[int, int]:
    """Returns used and total bytes of the whole GPU: what the driver counts, not PyTorch's own allocator."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return total - free, total
