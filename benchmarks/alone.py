"""Time something in a process that does nothing else: memory and threads are its own.

What is timed is a pair (load, arguments): ``load(*arguments)`` prepares, checks, and returns what
to time with some facts about it: a function of a module of this folder, and plain values.
"""

import functools
import importlib
import inspect
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from process_memory import peak_megabytes
from pytest_benchmark.fixture import BenchmarkFixture

Loaded: TypeAlias = tuple[Callable[[], object], dict[str, Any]]
Load: TypeAlias = Callable[..., Loaded]
Name: TypeAlias = tuple[str, str]


@contextmanager
def process() -> Iterator[Callable[..., Any]]:
    """A fresh process: what is yielded calls a function of a module of this folder in it."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_quieten) as pool:

        def call(function: Callable[..., Any], *arguments: Any) -> Any:
            return pool.submit(_call, _name(function), *arguments).result()

        yield call


def bench(
    benchmark: BenchmarkFixture, load: Load, arguments: tuple[Any, ...], rounds: int
) -> dict[str, Any]:
    """Time it through pytest-benchmark, after a run to warm up; returns the facts.

    To the facts of ``load`` are added "peak_mb" and "processor_seconds", the least of the rounds.
    """
    with process() as call:
        facts: dict[str, Any] = call(_prepare, _name(load), arguments)
        processor_seconds: list[float] = []

        def step() -> None:
            processor_seconds.append(call(_step, _name(load), arguments))

        benchmark.pedantic(step, rounds=rounds)  # type: ignore[no-untyped-call]  # pytest-benchmark's
        facts["peak_mb"] = call(peak_megabytes)
    facts["processor_seconds"] = min(processor_seconds)
    benchmark.extra_info.update(facts)
    return facts


def measure(load: Load, arguments: tuple[Any, ...], rounds: int) -> dict[str, Any]:
    """The same in this process: median and least seconds, peak memory, and the facts."""
    facts = _prepare(_name(load), arguments)
    before = peak_megabytes()
    seconds, processor_seconds = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        processor_seconds.append(_step(_name(load), arguments))
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds),
        "least_seconds": min(seconds),
        "processor_seconds": min(processor_seconds),
        "peak_mb": peak_megabytes(),
        "peak_mb_before": before,
        **facts,
    }


def _name(function: Callable[..., Any]) -> Name:
    """Where another process finds it: pytest imports a file under a name that is only its own."""
    return Path(inspect.getfile(function)).stem, function.__name__


def _call(name: Name, *arguments: Any) -> Any:
    module, function = name
    return getattr(importlib.import_module(module), function)(*arguments)


@functools.cache
def _loaded(load: Name, arguments: tuple[Any, ...]) -> Loaded:
    loaded: Loaded = _call(load, *arguments)
    return loaded


def _prepare(load: Name, arguments: tuple[Any, ...]) -> dict[str, Any]:
    run, facts = _loaded(load, arguments)
    run()
    return facts


def _step(load: Name, arguments: tuple[Any, ...]) -> float:
    """Once; returns the processor's seconds, which other programs do not lengthen."""
    start = time.process_time()
    _loaded(load, arguments)[0]()
    return time.process_time() - start


def _quieten() -> None:
    """Converters print pages; errors come back as exceptions."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
