"""A training in several processes of one machine, one a GPU: torch's DistributedDataParallel over nccl or gloo."""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.queues import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.multiprocessing.spawn import ProcessException, start_processes
from torch.nn.parallel import DistributedDataParallel

from wbc.training.progress import Curves, current_watchers, watching

T = TypeVar("T")
POLL_SECONDS = 0.1


def rank() -> int:
    """The number of this process among those that train together; 0 alone and in the first."""
    return dist.get_rank() if dist.is_initialized() else 0


def n_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def processes_for(device: str, wanted: int, batch: int) -> int:
    """How many processes a training of `batch` samples a step runs in: `wanted`, or with 0 one a GPU of `cuda`.

    Raises ValueError where they cannot share a batch evenly, or there are more than GPUs.
    """
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    if wanted == 0:
        return max((n for n in range(1, gpus + 1) if batch % n == 0), default=1)
    if batch % wanted:
        raise ValueError(f"{wanted} processes cannot share a batch of {batch} evenly")
    if device.startswith("cuda") and wanted > max(1, gpus):
        raise ValueError(f"{wanted} processes on {device}: there are {gpus} GPUs")
    return wanted


def train_together(n: int, device: str, recipe: Callable[..., T], *arguments: Any) -> T:
    """What `recipe(*arguments, device)` returns in the first of `n` processes, which train one model together.

    With one process it is called here. What it returns holds no tensors. An error of any process ends the others, and
    is raised here.
    """
    if n == 1:
        return recipe(*arguments, device)
    words, answers = mp.get_context("spawn").SimpleQueue(), list[Any]()
    with TemporaryDirectory(prefix="wbc-training-") as folder:
        work = (f"file://{folder}/meeting", n, words, device, recipe, arguments)
        context: Any = start_processes(_take_part, work, nprocs=n, join=False)  # type: ignore[no-untyped-call]
        try:
            while not context.join(timeout=POLL_SECONDS):
                answers += _pass_on(words)
        except ProcessException:
            for error in [*answers, *_pass_on(words)]:
                raise error from None
            raise
    (result,) = [*answers, *_pass_on(words)]
    return cast(T, result)


def _pass_on(words: "SimpleQueue[Any]") -> list[Any]:
    """Tell this process's watchers what the first one says; its result and all errors are returned, as they came."""
    answers = []
    while not words.empty():
        what, *said = words.get()
        if what == "answer":
            answers += said
        else:
            for watcher in current_watchers():
                getattr(watcher, what)(*said)
    return answers


class _Words:
    """Watches the training of the first process, and says all in the one that started it."""

    def __init__(self, words: "SimpleQueue[Any]") -> None:
        self.words = words

    def begins(self, name: str, step: int, steps: int) -> None:
        self.words.put(("begins", name, step, steps))

    def step_done(self, step: int, losses: Mapping[str, float]) -> None:
        self.words.put(("step_done", step, losses))

    def checkpointed(self, step: int, curves: Curves) -> None:
        self.words.put(("checkpointed", step, curves))


def _take_part(
    number: int,
    meeting: str,
    n: int,
    words: "SimpleQueue[Any]",
    device: str,
    recipe: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """The whole life of process `number`; the first puts its result into `words`, any its error."""
    Thread(target=_end_with_the_parent, daemon=True).start()
    own = f"cuda:{number}" if device == "cuda" else device
    if own != device:
        torch.cuda.set_device(number)
    dist.init_process_group("nccl" if own.startswith("cuda") else "gloo", meeting, rank=number, world_size=n)
    try:
        with watching(_Words(words)):
            result = recipe(*arguments, own)
    except Exception as error:
        words.put(("answer", error))  # before the others notice that this one has gone
        raise
    if number == 0:
        words.put(("answer", result))
    dist.barrier()  # the first measures and saves: it is the one that the others wait for
    dist.destroy_process_group()


def _end_with_the_parent() -> None:
    """End this process when the one that started it has ended, killed or not.

    It would learn on unseen, and its checkpoints would be another training's that was started in their folder since.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def shared(model: nn.Module) -> nn.Module:
    """`model` as each process calls it, so that gradients are the mean of all; itself where there is one process.

    Batch statistics are those of all processes on GPUs; on CPUs each has its own, and the first one's are kept.
    """
    if n_processes() == 1:
        return model
    return DistributedDataParallel(model)


def mean_of_all(values: Mapping[str, float]) -> dict[str, float]:
    """Each value as the mean over the processes."""
    if n_processes() == 1:
        return dict(values)
    means = torch.tensor(list(values.values()), dtype=torch.float64)
    if dist.get_backend() == "nccl":
        means = means.to("cuda", torch.float32)
    dist.all_reduce(means)
    return dict(zip(values, (means / n_processes()).tolist(), strict=True))
