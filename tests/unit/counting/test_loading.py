"""A worker's models."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from jobs import make_job
from upath import UPath

from wbc.counting import worker
from wbc.models import registry
from wbc.models.registry import LoadedModel


def slowly(load: Callable[..., LoadedModel], loads: list[str]) -> Callable[..., LoadedModel]:
    def loading(*given: Any) -> LoadedModel:
        loads.append(str(given[0]))
        time.sleep(0.2)
        return load(*given)

    return lru_cache(loading)


def test_first_calls_at_once_load_each_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(UPath(tmp_path), classifier=registry.resolve("bundled:classifier", "classifier")[0])
    loads: list[str] = []
    for name in ("ready_detector", "ready_classifier"):
        monkeypatch.setattr(worker, name, slowly(getattr(worker, name), loads))
    with ThreadPoolExecutor(4) as threads:
        models = [threads.submit(worker._models, job) for _ in range(4)]
    assert len(loads) == 2
    assert len({id(m.result().detector) for m in models}) == 1
