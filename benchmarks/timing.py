"""What all benchmarks share: interleaved timing, peak memory of a process of its own, and the printed result."""

import gc
import multiprocessing
import re
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

Device = Literal["cuda", "cpu"]

_STATUS = Path("/proc/self/status")
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class PeakMemory:
    """Greatest resident memory in bytes.

    Attributes:
        process: of the process itself.
        child: of the largest of its finished child processes, pages shared with the process included; 0 without any.
        anonymous: what of the process's own memory is no page of a file, looked at every 5 ms; 0 where Linux is not
            there to say.
    """

    process: int
    child: int
    anonymous: int


def fresh(function: Callable[..., Any], *arguments: Any, seconds: float | None = None) -> Any:
    """What a function of a module returns in a new process.

    Args:
        function: of a module.
        arguments: of it.
        seconds: that the process may take; it is killed then.

    Raises:
        TimeoutError: it took longer.
        RuntimeError: the process died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise TimeoutError(f"{function.__name__} took more than {seconds:.0f} s")
        value, error = ours.recv()
        process.join()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process of {function.__name__} died with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if error is not None:
        raise error
    return value


def _answer(connection: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        connection.send((function(*arguments), None))
    except Exception as error:
        traceback.print_exc()
        connection.send((None, error))


def in_fresh_process(function: Callable[..., object], *arguments: Any) -> PeakMemory:
    """Call a function of a module in a new process and give that process's peak resident memory."""
    return fresh(_peak_of, function, arguments)


def _peak_of(function: Callable[..., object], arguments: tuple[Any, ...]) -> PeakMemory:
    seen, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(_status("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    if _STATUS.exists():
        watcher.start()
    try:
        function(*arguments)
    finally:
        done.set()
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _RSS_UNIT
    return PeakMemory(own_peak(), children, max(seen))


def own_peak(device: Device = "cpu") -> int:
    """This process's greatest memory so far, in bytes: allocated on the GPU, or resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():
        # On Linux, ru_maxrss of a spawned process begins at the memory of the process that spawned it.
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def _status(field: str) -> int:
    kilobytes = re.search(rf"^{field}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if kilobytes is None:
        raise RuntimeError(f"{_STATUS} has no line {field}, which says how much memory there is in use")
    return int(kilobytes[1]) * 1024


def interleaved(variants: Mapping[str, Callable[[int], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of every call; the variants take turns, and who is first alternates, so that they meet the same noise.

    Args:
        variants: name to what is timed, called with the number of the repetition.
        repetitions: calls of each.

    Raises:
        ValueError: for less than one repetition.
    """
    if repetitions < 1:
        raise ValueError(f"repetitions is {repetitions}; give 1 or more")
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(repetitions):
        for name in list(variants)[:: -1 if repetition % 2 else 1]:
            start = time.perf_counter()
            variants[name](repetition)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def table(seconds: Mapping[str, list[float]], notes: Mapping[str, str]) -> str:
    """One line for each variant: median and range of its seconds, and a note (its peak memory)."""
    width = max(map(len, seconds))
    return "\n".join(
        f"{name:{width}}  median {median(times):.3f} s ({min(times):.3f} to {max(times):.3f}), {notes[name]}"
        for name, times in seconds.items()
    )


def ratio_line(ours: list[float], baseline: list[float], what: str) -> str:
    """The last line of a benchmark: how many times as fast as the baseline, by medians of the same work's seconds."""
    return f"ratio: {median(baseline) / median(ours):.2f} ({what})"


@dataclass(frozen=True)
class Measured:
    """What a case took: median seconds, peak memory in bytes, and its batch size."""

    seconds: float
    memory: int
    batch_size: int


def largest_that_fits(measure: Callable[[int], tuple[float, int] | None], batch_size: int) -> Measured | None:
    """Measure with the batch halved until it fits; None where not even one sample does.

    Args:
        measure: gives seconds and peak memory of a batch size, or None where memory does not suffice.
        batch_size: the first one.
    """
    while batch_size:
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if (found := measure(batch_size)) is not None:
            return Measured(*found, batch_size)
        batch_size //= 2
    return None


def timed(device: Device, repetitions: int, run: Callable[[int], object]) -> tuple[float, int] | None:
    """Median seconds of calls after two that warm up, and peak memory; None where memory does not suffice."""
    try:
        seconds = []
        for repetition in range(-2, repetitions):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run(repetition)
            if device == "cuda":
                torch.cuda.synchronize()
            if repetition >= 0:
                seconds.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return None
    return median(seconds), own_peak(device)
