"""What a model is worth on frozen slides: figures, tables and pictures, each figure with the limits of its noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wbc.evaluation.boxes import FoundSet, confusion_of, find, score_boxes
from wbc.evaluation.frozen import Frozen, kind_of, top_kinds
from wbc.evaluation.names import OTHER, NamedSet, name_set
from wbc.evaluation.noise import NoiseSettings, Told, draw, limits, mean_over_kinds, whole
from wbc.evaluation.reliability import Reliability, reliability_of
from wbc.evaluation.slide_counts import differential_rows
from wbc.models import registry
from wbc.models.cards import ModelRef
from wbc.models.registry import LoadedModel
from wbc.taxonomy import UNIDENTIFIED


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """Detections of at least `min_score` are cells; `partner` is the model of the other task, "" for none.

    Detector and classifier together make the differential of slides.
    """

    min_score: float = 0.7
    partner: str = ""
    noise: NoiseSettings = field(default_factory=NoiseSettings)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """All that was measured: `figures` by set and name, `limits` of some of them, tables by name.

    `confusions` are by set: the names of rows and columns, and counts int64, rows true. `reliabilities` are by set.
    """

    model: ModelRef
    task: str
    frozen: str
    figures: Mapping[str, Mapping[str, float]]
    limits: Mapping[str, Mapping[str, tuple[float, float]]]
    tables: Mapping[str, pd.DataFrame]
    confusions: Mapping[str, tuple[Sequence[str], Sequence[str], NDArray[np.int64]]]
    reliabilities: Mapping[str, Reliability]
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Figures, limits and tables as JSON's types; what is not defined is null."""
        return {
            "model": self.model.reference,
            "digest": self.model.digest,
            "task": self.task,
            "frozen": self.frozen,
            "figures": {name: {k: _plain(v) for k, v in own.items()} for name, own in self.figures.items()},
            "limits": {n: {k: [_plain(v) for v in pair] for k, pair in own.items()} for n, own in self.limits.items()},
            "tables": {
                name: [{str(k): _plain(v) for k, v in row.items()} for row in table.to_dict("records")]
                for name, table in self.tables.items()
            },
            "remarks": list(self.remarks),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def evaluate(
    reference: str, frozen: Frozen, device: str, settings: EvaluationSettings = EvaluationSettings()
) -> Evaluation:
    """Measure a detector or classifier on frozen sets, each by itself.

    Raises ModelError where it is no model, ValueError where no set has a cell that it could tell, FieldError for a
    picture that cannot be read.
    """
    card = registry.read_card(reference)
    ref, _ = registry.resolve(reference, card.task)
    model = registry.load(ref, device)
    parts = _Parts(ref, card.task, frozen, settings)
    if card.task == "detector":
        for one in frozen.with_fields:
            _add_boxes(parts, find(one, model, frozen.taxonomy))
    else:
        for one in frozen.sets:
            _add_names(parts, name_set(one, model, frozen.taxonomy))
    if not parts.figures:
        raise ValueError(f"the frozen sets show no cell that a {card.task} could tell")
    _add_differentials(parts, model, device)
    return parts.whole()


class _Parts:
    """What was measured so far."""

    def __init__(self, ref: ModelRef, task: str, frozen: Frozen, settings: EvaluationSettings) -> None:
        self.ref, self.task, self.frozen, self.settings = ref, task, frozen, settings
        self.figures: dict[str, dict[str, float]] = {}
        self.limits: dict[str, dict[str, tuple[float, float]]] = {}
        self.tables: dict[str, list[dict[str, Any]]] = {"kinds": [], "differentials": []}
        self.confusions: dict[str, tuple[Sequence[str], Sequence[str], NDArray[np.int64]]] = {}
        self.reliabilities: dict[str, Reliability] = {}
        self.remarks: list[str] = []

    def whole(self) -> Evaluation:
        tables = {name: pd.DataFrame(rows) for name, rows in self.tables.items() if rows}
        measured = self.figures, self.limits, tables, self.confusions, self.reliabilities
        return Evaluation(self.ref, self.task, self.frozen.digest(), *measured, tuple(self.remarks))


def _add_boxes(parts: _Parts, found: FoundSet) -> None:
    if not any(picture.labels for picture, _, _ in found.truth):
        parts.remarks.append(f"{found.name}: no cell of the detector's classes")
        return
    settings = parts.settings
    figures, score = score_boxes(found)
    told = score.told(settings.min_score)
    surely = score.scores >= settings.min_score
    called = np.array(found.classes, object)[score.labels]
    counts = {kind: int((surely & (called == kind)).sum()) for kind in told.present()}
    right = {kind: int((surely & score.hit & (called == kind)).sum()) for kind in counts}
    rows = _kind_rows(found.name, told, counts, right, settings)
    parts.tables["kinds"] += rows
    own = np.isin(called, told.present())  # what a set does not label is not false there
    reliability = reliability_of(score.scores[own], score.hit[own])
    parts.figures[found.name] = figures | _macro(rows) | {"ECE of scores": reliability.ece}
    draws = draw({found.name: score.n_fields}, settings.noise)[found.name]
    parts.limits[found.name] = {
        "AP50": limits(mean_over_kinds(score.ap50(draws)), settings.noise),
        "sensitivity": limits(mean_over_kinds(told.sensitivities(told.present(), draws)), settings.noise),
    }
    words = [*found.classes, "nothing"], [*found.classes, "missed"]
    parts.confusions[found.name] = (*words, confusion_of(found, settings.min_score))
    parts.reliabilities[found.name] = reliability
    if found.left_out:
        parts.remarks.append(f"{found.name}: {found.left_out} labelled cells are of no class of the detector")


def _add_names(parts: _Parts, named: NamedSet) -> None:
    if not named.labels:
        parts.remarks.append(f"{named.name}: no cell whose kind is labelled")
        return
    taxonomy, settings = parts.frozen.taxonomy, parts.settings
    told = named.told(taxonomy)
    kinds = top_kinds(named.labels, taxonomy)
    called = np.array([kind_of(name, kinds, taxonomy) or _rest(name) for name in named.names], object)
    counts = {kind: int((called == kind).sum()) for kind in kinds}
    right = {kind: int(((called == kind) & (told.kinds == kind)).sum()) for kind in kinds}
    rows = _kind_rows(named.name, told, counts, right, settings)
    parts.tables["kinds"] += rows
    likeliest = named.right(taxonomy, likeliest=True)
    reliability = reliability_of(named.scores.astype(np.float64), likeliest)
    figures = {"right": float(told.right.mean()), "right at the likeliest": float(likeliest.mean())}
    figures["unidentified"] = float((np.array(named.names, object) == UNIDENTIFIED).mean())
    parts.figures[named.name] = figures | _macro(rows) | {"ECE of names": reliability.ece}
    draws = draw({named.name: named.n_units}, settings.noise)[named.name]
    alike = Told(np.full(len(named.labels), "cell", object), told.right, told.units, told.n_units)
    parts.limits[named.name] = {
        "right": limits(alike.sensitivities(["cell"], draws)[:, 0], settings.noise),
        "sensitivity": limits(mean_over_kinds(told.sensitivities(kinds, draws)), settings.noise),
    }
    columns = [*kinds, OTHER, UNIDENTIFIED]
    matrix = np.array([[int(((told.kinds == r) & (called == c)).sum()) for c in columns] for r in kinds], np.int64)
    parts.confusions[named.name] = (kinds, columns, matrix)
    parts.reliabilities[named.name] = reliability
    if named.left_out:
        parts.remarks.append(f"{named.name}: {named.left_out} white cells are labelled by no kind")


def _rest(name: str) -> str:
    return UNIDENTIFIED if name == UNIDENTIFIED else OTHER


def _kind_rows(
    name: str, told: Told, counts: Mapping[str, int], counts_right: Mapping[str, int], settings: EvaluationSettings
) -> list[dict[str, Any]]:
    """Sensitivity, PPV and F1 of each kind in a set; NaN where nothing is called so."""
    kinds = told.present()
    draws = draw({name: told.n_units}, settings.noise)[name]
    drawn, plain = told.sensitivities(kinds, draws), told.sensitivities(kinds, whole(told.n_units))[0]
    rows = []
    for i, kind in enumerate(kinds):
        low, high = limits(drawn[:, i], settings.noise)
        n = counts.get(kind, 0)
        ppv = counts_right.get(kind, 0) / n if n else float("nan")
        total = plain[i] + ppv
        f1 = 2 * plain[i] * ppv / total if n and total else 0.0
        row = {"set": name, "kind": kind, "cells": int((told.kinds == kind).sum()), "reported": n}
        rows.append(row | {"sensitivity": float(plain[i]), "low": low, "high": high, "ppv": ppv, "f1": float(f1)})
    return rows


def _macro(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the kinds of a set."""
    names = ("sensitivity", "ppv", "f1")
    return {name: float(mean_over_kinds(np.array([[row[name] for row in rows]]))[0]) for name in names}


def _add_differentials(parts: _Parts, model: LoadedModel, device: str) -> None:
    """The differentials of the sets whose fields have cells of labelled kinds, where both models are at hand."""
    if not parts.settings.partner:
        return
    other = "classifier" if parts.task == "detector" else "detector"
    ref, _ = registry.resolve(parts.settings.partner, other)  # type: ignore[arg-type]
    partner = registry.load(ref, device)
    pair = (model, partner) if parts.task == "detector" else (partner, model)
    for one in parts.frozen.with_fields:
        settings = parts.settings
        compared = differential_rows(one, *pair, parts.frozen.taxonomy, settings.min_score, settings.noise)
        rows, error, bounds = compared
        if rows:
            parts.tables["differentials"] += rows
            own = parts.figures.setdefault(one.name, {})
            own["differential, mean absolute error in points"] = error
            own["differential, kinds inside the limits"] = float(np.mean([row["inside"] for row in rows]))
            parts.limits.setdefault(one.name, {})["differential, mean absolute error in points"] = bounds
