"""The gate: whether a challenger takes the champion's place, by what both make of the same frozen slides in one run.

It does if it is better and costs nobody anything that can be told:

- its main figure, the mean over the sets, is higher by more than noise: the lower limit of the difference over
  resampled fields (the same draw for both) is above zero;
- no kind's sensitivity in any set falls by more than `most_fall` points. A kind with fewer than `fewest` cells in a set
  moves by many points with each of them, so that there a fall also has to be beyond chance (the sign test of the cells
  that the two tell differently); and such kinds are judged once more with the cells of all sets together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wbc.evaluation.boxes import BoxScore, FoundSet, find, score_roughly
from wbc.evaluation.frozen import Frozen, top_kinds
from wbc.evaluation.names import name_set
from wbc.evaluation.noise import NoiseSettings, Told, Weights, draw, fall_by_chance, limits, mean_over_kinds, whole
from wbc.models import registry
from wbc.models.cards import ModelError, ModelRef, Task

Main = Literal["AP50", "mean_recall", "right"]
ALL_SETS = "all sets"


@dataclass(frozen=True, slots=True)
class GateSettings:
    """What the gate asks for.

    `main` is the figure that is to be better: AP50 for detectors, for classifiers mean_recall (over kinds) or right (of
    all cells). `most_fall` is in points of a kind's sensitivity, `fewest` in cells; `chance` is how likely a fall of a
    kind with fewer may be by chance. A detector's cells are those that it is at least `min_score` sure of.
    """

    main: Main | None = None
    most_fall: float = 3.0
    fewest: int = 30
    chance: float = 0.05
    min_score: float = 0.7
    noise: NoiseSettings = field(default_factory=NoiseSettings)

    def main_of(self, task: Task) -> Main:
        """The main figure of a task. Raises ValueError where the one that is set is of another."""
        main: Main = self.main or ("AP50" if task == "detector" else "mean_recall")
        if (main == "AP50") != (task == "detector"):
            raise ValueError(f"{main} is no figure of a {task}")
        return main


@dataclass(frozen=True, slots=True)
class KindRow:
    """One kind in one set: its number of cells, both models' sensitivities in percent, and what the gate makes of it.

    `by_chance` is how likely such a fall is by chance. `verdict` is kept, fell, or too few to tell.
    """

    set: str
    kind: str
    cells: int
    champion: float
    challenger: float
    by_chance: float
    verdict: Literal["kept", "fell", "too few to tell"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate decided, and why: both models' figures side by side.

    `champion_main` and `challenger_main` are the main figure of each set and of `all sets`; `gain_low` and `gain_high`
    are the limits of the difference over all sets. `champion` and `challenger` are pinned references with the digests
    of their models, `frozen` is the digest of the slides.
    """

    promoted: bool
    reasons: tuple[str, ...]
    task: Task
    main: Main
    champion: ModelRef
    challenger: ModelRef
    champion_main: Mapping[str, float]
    challenger_main: Mapping[str, float]
    gain_low: float
    gain_high: float
    kinds: tuple[KindRow, ...]
    frozen: str
    settings: GateSettings

    @property
    def gain(self) -> float:
        """The challenger's main figure less the champion's, over all sets."""
        return self.challenger_main[ALL_SETS] - self.champion_main[ALL_SETS]

    def to_json(self) -> dict[str, Any]:
        """The decision as JSON's types."""
        return asdict(self) | {"gain": self.gain}

    def lines(self) -> list[dict[str, str]]:
        """Both columns of figures as rows of a table: the main figure of each set, then the sensitivities by kind."""
        rows = [
            _line(name, self.main, "", value, self.challenger_main[name], "")
            for name, value in self.champion_main.items()
        ]
        return rows + [
            _line(row.set, f"sensitivity of {row.kind}, %", str(row.cells), row.champion, row.challenger, row.verdict)
            for row in self.kinds
        ]

    def headline(self) -> str:
        """The decision in a sentence."""
        verb = "is the champion now" if self.promoted else "is not promoted"
        gain = f"{self.main} {self.gain:+.4f} ({self.gain_low:+.4f} to {self.gain_high:+.4f})"
        why = "" if self.promoted else f": {'; '.join(self.reasons)}"
        return f"{self.challenger.reference} {verb}, beside {self.champion.reference}, {gain}{why}"


def _line(name: str, figure: str, cells: str, before: float, after: float, verdict: str) -> dict[str, str]:
    return {
        "set": name,
        "figure": figure,
        "cells": cells,
        "champion": f"{before:.4g}",
        "challenger": f"{after:.4g}",
        "": verdict,
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """What one model makes of one set: its main figure for draws of units, (R,), and each true cell told right or not.

    What the two models' `told` hold is in the same order: they are paired cell by cell.
    """

    main: Callable[[Weights], NDArray[np.float64]]
    told: Told


def judge(
    champion: str, challenger: str, frozen: Frozen, device: str, settings: GateSettings = GateSettings()
) -> Decision:
    """Decide whether `challenger` is to take the place of `champion`; both are references. Nothing is changed.

    Raises ModelError where one is no model or they are of different tasks, ValueError where the frozen sets show no
    cell of the models' classes, FieldError where a picture cannot be read.
    """
    refs, task = _pinned(champion, challenger)
    main = settings.main_of(task)
    judged = [_judge_model(ref, task, frozen, device, settings, main) for ref in refs]
    draws = draw({name: one.told.n_units for name, one in judged[0].items()}, settings.noise)
    values = [{name: one.main(whole(one.told.n_units))[0] for name, one in model.items()} for model in judged]
    drawn = [np.stack([one.main(draws[name]) for name, one in model.items()], 1) for model in judged]
    columns = [_with_mean({name: float(value) for name, value in model.items()}) for model in values]
    low, high = limits(mean_over_kinds(drawn[1]) - mean_over_kinds(drawn[0]), settings.noise)
    rows = _kind_rows({name: (judged[0][name].told, judged[1][name].told) for name in judged[0]}, settings)
    reasons = _reasons(columns, low, rows, main)
    return Decision(
        promoted=not reasons,
        reasons=reasons,
        task=task,
        main=main,
        champion=refs[0],
        challenger=refs[1],
        champion_main=columns[0],
        challenger_main=columns[1],
        gain_low=low,
        gain_high=high,
        kinds=rows,
        frozen=frozen.digest(),
        settings=settings,
    )


def figures_of(
    reference: str, task: Task, frozen: Frozen, device: str, settings: GateSettings = GateSettings()
) -> dict[str, float]:
    """One model's figures on frozen slides, from 0 to 1, by the names that its version keeps them by.

    The main figure of each set and of all, and the sensitivity of each kind with at least `fewest` cells in a set.
    """
    ref, _ = registry.resolve(reference, task)
    main = settings.main_of(task)
    judged = _judge_model(ref, task, frozen, device, settings, main)
    mains = _with_mean({name: float(one.main(whole(one.told.n_units))[0]) for name, one in judged.items()})
    figures = {main_name(main, name): value for name, value in mains.items()}
    for name, one in judged.items():
        for kind in one.told.present():
            own = one.told.kinds == kind
            if own.sum() >= settings.fewest:
                figures[sensitivity_name(name, kind)] = float(one.told.right[own].mean())
    return figures


def main_name(main: Main, name: str) -> str:
    """What a version calls the main figure of a set."""
    return f"gate {main} {name}"


def sensitivity_name(name: str, kind: str) -> str:
    """What a version calls the sensitivity of a kind in a set."""
    return f"gate sensitivity {name} {kind}"


def _pinned(champion: str, challenger: str) -> tuple[tuple[ModelRef, ModelRef], Task]:
    task = registry.read_card(champion).task
    (first, own), (second, other) = registry.resolve(champion, task), registry.resolve(challenger, task)
    if task == "detector" and own.classes != other.classes:
        raise ModelError(f"{challenger!r} finds {other.classes}, {champion!r} {own.classes}: they cannot be compared")
    if first.digest == second.digest:
        raise ModelError(f"{challenger!r} and {champion!r} are one model")
    return (first, second), task


def _judge_model(
    ref: ModelRef, task: Task, frozen: Frozen, device: str, settings: GateSettings, main: Main
) -> dict[str, _Judged]:
    """What a model makes of each set that shows cells of its classes, by the set's name."""
    model = registry.load(ref, device)
    if task == "detector":
        found = [find(one, model, frozen.taxonomy) for one in frozen.with_fields]
        judged = {one.name: _judged_boxes(one, settings) for one in found if any(p.labels for p, _, _ in one.truth)}
    else:
        named = [name_set(one, model, frozen.taxonomy) for one in frozen.sets]
        tops = top_kinds([label for one in named for label in one.labels], frozen.taxonomy)
        judged = {}
        for one in named:
            if one.labels:
                likeliest = one.told(frozen.taxonomy, tops, likeliest=True)
                figure = _main_of_names(likeliest, main)
                judged[one.name] = _Judged(figure, one.told(frozen.taxonomy, tops))
    if not judged:
        raise ValueError(f"the frozen sets show no cell that a {task} could tell")
    return judged


def _judged_boxes(found: FoundSet, settings: GateSettings) -> _Judged:
    score = score_roughly(found)
    return _Judged(_main_of_boxes(score), score.told(settings.min_score))


def _main_of_boxes(score: BoxScore) -> Callable[[Weights], NDArray[np.float64]]:
    return lambda weights: mean_over_kinds(score.ap50(weights))


def _main_of_names(told: Told, main: Main) -> Callable[[Weights], NDArray[np.float64]]:
    if main == "right":
        alike = Told(np.full(len(told.kinds), "cell", object), told.right, told.units, told.n_units)
        return lambda weights: alike.sensitivities(["cell"], weights)[:, 0]
    return lambda weights: mean_over_kinds(told.sensitivities(told.present(), weights))


def _with_mean(values: Mapping[str, float]) -> dict[str, float]:
    """Figures by set, and their mean: each scanner weighs alike, whatever its number of cells."""
    return {ALL_SETS: float(np.nanmean(list(values.values()))), **values}


def _kind_rows(pairs: Mapping[str, tuple[Told, Told]], settings: GateSettings) -> tuple[KindRow, ...]:
    rows = [
        _kind_row(name, kind, *_of_kind(pair, kind), settings)
        for name, pair in pairs.items()
        for kind in pair[0].present()
    ]
    small = sorted({row.kind for row in rows if row.cells < settings.fewest})
    for kind in small:
        parts = [_of_kind(pair, kind) for pair in pairs.values()]
        if len(pairs) > 1:
            together = np.concatenate([before for before, _ in parts]), np.concatenate([after for _, after in parts])
            rows.append(_kind_row(ALL_SETS, kind, *together, settings))
    return tuple(rows)


def _of_kind(pair: tuple[Told, Told], kind: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each cell of a kind was told right by either model."""
    own = pair[0].kinds == kind
    return pair[0].right[own], pair[1].right[own]


def _kind_row(
    name: str, kind: str, before: NDArray[np.bool_], after: NDArray[np.bool_], settings: GateSettings
) -> KindRow:
    champion, challenger = 100 * float(before.mean()), 100 * float(after.mean())
    by_chance = fall_by_chance(before, after)
    is_fall = champion - challenger > settings.most_fall
    has_few = len(before) < settings.fewest
    fell: Sequence[Literal["kept", "fell", "too few to tell"]] = ["kept"]
    if is_fall:
        fell = ["too few to tell"] if has_few and by_chance > settings.chance else ["fell"]
    return KindRow(name, kind, len(before), champion, challenger, by_chance, fell[0])


def _reasons(
    columns: Sequence[Mapping[str, float]], low: float, rows: Sequence[KindRow], main: Main
) -> tuple[str, ...]:
    """Why a challenger is not promoted; none where it is."""
    before, after = (column[ALL_SETS] for column in columns)
    reasons = []
    if not low > 0:
        reasons.append(f"{main} is {after:.4f} beside {before:.4f}: not better by more than noise")
    reasons += [
        f"{row.kind} of {row.set}: sensitivity falls from {row.champion:.1f} to {row.challenger:.1f} %"
        for row in rows
        if row.verdict == "fell"
    ]
    return tuple(reasons)
