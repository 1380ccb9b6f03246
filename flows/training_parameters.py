"""What the training flows can be told: each parameter with its type, default, limits and explanation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from wbc.counting.parameters import check_device
from wbc.models.cards import Task
from wbc.training.orders import Budget, Order

Device = Annotated[str, AfterValidator(check_device), Field(description="auto, cpu, cuda or cuda:NUMBER.")]
Data = Annotated[str, Field(min_length=1, description="Folder with the data sets that the config names.")]
Runs = Annotated[str, Field(min_length=1, description="Folder of trainings; each has a folder of its own there.")]
Snapshot = Annotated[
    str, Field(description="Digest of what the annotation store held; if left out, what it holds when the run begins.")
]
Steps = Annotated[int, Field(ge=0, description="Steps of each training; 0: as its config says.")]
Minutes = Annotated[float, Field(ge=0, description="Minutes after which a training ends; 0: as its config says.")]
Processes = Annotated[int, Field(ge=0, description="Processes that train together; 0: one for each GPU.")]


@dataclass(frozen=True, slots=True)
class TrainingParameters:
    """One training, as it was asked for."""

    config: Annotated[str, Field(min_length=1, description="TOML file: classes, model, data, steps.")]
    data: Data
    runs: Runs
    snapshot: Snapshot = ""
    steps: Steps = 0
    minutes: Minutes = 0.0
    device: Device = "auto"
    processes: Processes = 0

    def order(self, task: Task) -> Order:
        """The training of a model for a task that this asks for."""
        return Order(
            task,
            Path(self.config),
            Path(self.data),
            Path(self.runs),
            self.snapshot,
            Budget(self.steps, self.minutes),
            self.device,
            self.processes,
        )


@dataclass(frozen=True, slots=True)
class RetrainingParameters:
    """The training of both models, or of one, on what is new."""

    data: Data
    runs: Runs
    detector: Annotated[str | None, Field(description="The detector's config; null trains none.")] = None
    classifier: Annotated[str | None, Field(description="The classifier's config; null trains none.")] = None
    frozen: Annotated[
        str | None, Field(description="TOML file of the frozen slides that the gate judges on; null promotes nothing.")
    ] = None
    snapshot: Snapshot = ""
    least_new: Annotated[
        int, Field(ge=0, description="Nothing is trained where fewer annotations came since the last training.")
    ] = 1
    steps: Steps = 0
    minutes: Minutes = 0.0
    device: Device = "auto"
    processes: Processes = 0

    def orders(self) -> list[Order]:
        """The trainings that this asks for."""
        wanted: list[tuple[Task, str | None]] = [("detector", self.detector), ("classifier", self.classifier)]
        own = {"snapshot": self.snapshot, "device": self.device, "processes": self.processes}
        budget = Budget(self.steps, self.minutes)
        return [
            Order(task, Path(config), Path(self.data), Path(self.runs), budget=budget, **own)  # type: ignore[arg-type]
            for task, config in wanted
            if config is not None
        ]
