"""What a count can be told: each parameter with its type, default, limits and explanation, written down once.

The flow, the command line, the deployment and the tests take them from here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.fields import FieldInfo

from wbc.engine import EngineChoice
from wbc.sought import Sought

Drawing = Literal["none", "white", "all"]


def check_device(value: str) -> str:
    """`value`. Raises ValueError where it names no device."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError(f"{value!r} is not auto, cpu, cuda or cuda:NUMBER")
    return value


def _drawing(value: object) -> object:
    return {True: "white", False: "none"}[value] if isinstance(value, bool) else value


def _model_or_none(value: object) -> object:
    return None if value == "none" else value


@dataclass(frozen=True, slots=True)
class CountParameters:
    """One count, as it was asked for. Built directly nothing is checked: `wbc.configs.checked` and Prefect do that."""

    slides: Annotated[
        str, Field(min_length=1, description="Folder of slide folders: a path or an fsspec address such as s3://….")
    ]
    out: Annotated[
        str, Field(min_length=1, description="Where the tables go: a path or an fsspec address that all workers reach.")
    ]
    detector: Annotated[str, Field(description="bundled:NAME, a model's folder, or models:/NAME@ALIAS.")] = (
        "bundled:detector"
    )
    classifier: Annotated[
        str | None,
        BeforeValidator(_model_or_none, json_schema_input_type=str | None),
        Field(description="A model, as for the detector; `none` leaves the white cells unnamed."),
    ] = "bundled:classifier"
    taxonomy: Annotated[str, Field(description="blood, marrow_icsh, wang2021, asae2020, or your own TOML file.")] = (
        "blood"
    )
    min_score: Annotated[float, Field(ge=0, le=1, description="Leave out cells that the detector is less sure of.")] = (
        0.7
    )
    cells: Annotated[
        Sought,
        Field(
            description="Which cells to look for: all; white, the nucleated ones, several times as fast; or "
            "white_and_platelets."
        ),
    ] = "all"
    um_per_px: Annotated[
        float | None,
        Field(
            ge=0.02,  # as wbc.types has it, which imports numpy: too slow for `wbc --help`
            le=2,
            allow_inf_nan=False,
            description="Scale of all slides in µm per pixel. If left out, metadata or the red cells give it.",
        ),
    ] = None
    device: Annotated[str, AfterValidator(check_device), Field(description="auto, cpu, cuda or cuda:NUMBER.")] = "auto"
    engine: Annotated[
        EngineChoice,
        Field(
            description="What runs the detector: torch; openvino, faster on processors, which comes with wbc[fast]; "
            "or auto, OpenVINO where it is installed."
        ),
    ] = "auto"
    workers: Annotated[
        int | None,
        Field(
            ge=1, description="Number of worker processes. If left out, the machine or the cluster's settings decide."
        ),
    ] = None
    scheduler: Annotated[
        str | None, Field(description="Address of a running Dask cluster, such as tcp://host:8786.")
    ] = None
    settings: Annotated[str | None, Field(description="TOML file that says which cluster to start.")] = None
    force: Annotated[bool, Field(description="Count slides again even if nothing has changed.")] = False
    verify: Annotated[
        bool,
        Field(description="Read every field to see whether it has changed, instead of trusting its size and time."),
    ] = False
    rename: Annotated[
        bool, Field(description="Slides in OUT that have another address or slide_id now were moved: go on with them.")
    ] = False
    keep_pixels: Annotated[bool, Field(description="Keep the fields' pixels as Zarr in OUT/pixels.")] = False
    annotate: Annotated[
        Drawing,
        BeforeValidator(_drawing, json_schema_input_type=bool | Drawing),
        Field(description="Draw the cells into OUT/annotated: the white ones, or all."),
    ] = "none"


def explanations(parameters: type = CountParameters) -> Mapping[str, str]:
    """What each parameter means, by name, in order."""
    hints = get_type_hints(parameters, include_extras=True)
    return {name: _explanation(hint) for name, hint in hints.items()}


def _explanation(hint: object) -> str:
    info = next(part for part in get_args(hint) if isinstance(part, FieldInfo))
    return info.description or ""
