"""The rows of the papers' tables of classifiers: what each changes in a config, and the paper's own figure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wbc.configs import read_toml
from wbc.training.classifier import ClassifierConfig
from wbc.training.classifier_data import CropSettings

CONFIGS = Path(__file__).parents[1] / "configs/papers"
HUE = (125.0, 155.0)  # section 4.3 of ASAE-Net 2020
# Of 14×14 at 224 px; a crop of 96 px has 6×6 behind layer3 and 3×3 behind layer4, The paper's square of
# 6 (β = 36) and its peaks of 5 become about as large a part of these.
SCALED = {"area_px": 9, "kernel_px": 3}
SCALED_SMALL = {"area_px": 4, "kernel_px": 3}
R18, R50 = {"backbone": "resnet18"}, {"backbone": "resnet50"}
ABLATION_STEPS = 200  # of asae2020_small.toml
VARRA_STEPS = 30 * 156  # epochs; the report has 150, which one row has, too
LITE0 = {"backbone": "tf_efficientnet_lite0"}


@dataclass(frozen=True, slots=True)
class Variant:
    """A row: its name, the config that it starts from, what it changes there, and the row it is compared with.

    `paper` is the paper's accuracy in percent. `steps` is how far it is trained, where not as far as its config says;
    `input_px` the side of its crops, which show as much of the cell as the config's.
    The names of its runs are `name-seed-S`, of `seeds` at most.
    """

    name: str
    label: str
    table: str
    config: str
    builder: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "ce"
    balanced: bool = False
    hue: bool = False
    scratch: bool = False
    steps: int = 0
    input_px: int = 0
    paper: float | None = None
    against: str = ""
    seeds: int = 3

    @property
    def cost_name(self) -> str:
        """What its costs are kept as: a longer training makes no other network."""
        name = self.name.removeprefix("long_").removeprefix("longest_").removeprefix("whole_")
        return name.replace("largest_", "large_").replace("full_", "large_")

    def plan(self, seed: int) -> ClassifierConfig:
        """The training of this row by a seed."""
        plan = read_toml(CONFIGS / f"{self.config}.toml", ClassifierConfig)
        if self.builder:
            plan = replace(plan, builder=self.builder, model=dict(self.model))
        if self.model.get("lower_levels"):
            plan = replace(plan, frozen=tuple(f"backbone.{part}" for part in plan.frozen))
        if self.scratch:
            plan = _from_scratch(plan)
        return replace(
            plan,
            loop=replace(plan.loop, seed=seed, steps=self.steps or plan.loop.steps),
            loss=replace(plan.loss, name=self.loss) if self.loss != "ce" else plan.loss,
            sampler="balanced" if self.balanced else plan.sampler,
            crop=self._crop(plan.crop),
        )

    def _crop(self, crop: CropSettings) -> CropSettings:
        if self.input_px:
            crop = replace(crop, input_px=self.input_px, um_per_px=crop.um_per_px * crop.input_px / self.input_px)
        return replace(crop, hue=HUE) if self.hue else crop


def _from_scratch(plan: ClassifierConfig) -> ClassifierConfig:
    """A plan for a network without ImageNet's weights: all of it learns, by more steps."""
    loop = replace(plan.loop, steps=800, rate=0.05, warm_up=50)
    return replace(plan, imagenet=False, frozen=(), loop=loop)


def _asae(name: str, label: str, **more: Any) -> Variant:
    return Variant(name, label, "lite0", "asae2020_small", **{"balanced": True, "hue": True, **more})


def _scratch(name: str, label: str, builder: str, model: Mapping[str, Any], **more: Any) -> Variant:
    return Variant(name, label, "scratch", "asae2020_small", builder, model, scratch=True, **more)


def _longer(variant: Variant, times: int = 2, prefix: str = "long_", **more: Any) -> Variant:
    """A row of the ablations, trained for so many times as long."""
    more = {"against": f"{prefix}{variant.against}" if variant.against else "", **more}
    return replace(variant, name=f"{prefix}{variant.name}", table="long", steps=times * ABLATION_STEPS, **more)


def _varra(model: int, paper: float) -> Variant:
    name, plan = f"varra_model_{model}", {"model": model}
    return Variant(name, f"model {model}", "varra", "varra2019", "varra", plan, paper=paper, steps=VARRA_STEPS)


def _bccd(name: str, label: str, **more: Any) -> Variant:
    return Variant(name, label, "bccd", "bccd_kinds", **more)


ASAE = {**LITE0, **SCALED}
LEVEL = ASAE | {"level": True}  # what is enhanced keeps its mean, as at test
UNTINTED: dict[str, Any] = {"loss": "gmmce", "balanced": True}
ALL = UNTINTED | {"hue": True}
ABLATIONS = [
    _asae("plain", "plain lite0", balanced=False, hue=False, paper=72.61),
    _asae("hue", "+ hue", balanced=False, paper=73.02, against="plain"),
    _asae("sampler", "+ sampler, without hue", hue=False, against="plain"),
    _asae("hue_sampler", "+ hue + sampler", paper=73.53, against="plain"),
    _asae(
        "as", "+ AS behind layer3", builder="asae", model=ASAE | {"enhance": False}, paper=74.79, against="hue_sampler"
    ),
    _asae("asae", "+ ASAE behind layer3", builder="asae", model=ASAE, paper=75.11, against="hue_sampler"),
    _asae("gmmce", "+ ASAE + GMMCE: all", builder="asae", model=ASAE, loss="gmmce", paper=77.63, against="asae"),
    _asae("no_hue", "all but hue", builder="asae", model=ASAE, loss="gmmce", hue=False, against="plain"),
    _asae("gce", "+ ASAE + GCE", builder="asae", model=ASAE, loss="gce", paper=76.42, against="asae"),
    _asae(
        "as4",
        "+ AS behind layer4",
        builder="asae",
        model=LITE0 | SCALED_SMALL | {"after": 4, "enhance": False},
        paper=74.03,
        against="hue_sampler",
    ),
    _asae(
        "ae", "+ AE behind layer3", builder="asae", model=ASAE | {"suppress": False}, paper=74.10, against="hue_sampler"
    ),
    _asae("ae_level", "+ AE of mean 1", builder="asae", model=LEVEL | {"suppress": False}, against="hue_sampler"),
    _asae("asae_level", "+ ASAE of mean 1", builder="asae", model=LEVEL, against="hue_sampler"),
    _asae("level_gmmce", "+ ASAE of mean 1 + GMMCE", builder="asae", model=LEVEL, loss="gmmce", against="asae_level"),
    _asae("loss_gmmce", "+ GMMCE alone", loss="gmmce", against="hue_sampler"),
    _asae("sampler_gmmce", "+ sampler + GMMCE, without hue", loss="gmmce", hue=False, against="sampler"),
]
# What does best for neighbouring stages, and what it is put upon, by what an hour of a core can do; and at the bundled
# classifier's size of a crop.
BEST = [v for v in ABLATIONS if v.name in ("plain", "sampler_gmmce")]
LONGEST = [
    _longer(v, 4, prefix, label=f"{v.label}, 800 steps", against=f"{prefix}plain" if v.against else "", seeds=1, **more)
    for prefix, more in {"longest_": {}, "large_": {"input_px": 128}}.items()
    for v in BEST
]
LARGEST = [
    _longer(
        v,
        10,
        "largest_",
        label=f"{v.label}, 2,000 steps",
        against="largest_plain" if v.against else "",
        seeds=1,
        input_px=128,
    )
    for v in ABLATIONS
    if v.name in ("plain", "loss_gmmce")
]
# 48 epochs of pbc_cells, as a GPU does in six minutes; of the paper's 100 and more they are half.
FULL_STEPS = 2_810
FULL_ASAE = ASAE | {"area_px": 12}  # of 8×8 behind layer3
FULL = [
    replace(
        _longer(v, 1, "full_", label=f"{v.label}, 2,810 steps", input_px=128),
        steps=FULL_STEPS,
        model=FULL_ASAE if v.builder == "asae" else v.model,
    )
    for v in ABLATIONS
    if v.name in ("plain", "sampler", "sampler_gmmce", "no_hue")
]
VARIANTS = [
    _varra(2, paper=78.0),
    replace(_varra(2, paper=78.0), name="whole_varra_model_2", label="model 2, all 150 epochs", steps=5 * VARRA_STEPS),
    Variant("varra_transfer", "lite0 from ImageNet", "varra", "varra2019_transfer", against="varra_model_2"),
    Variant(
        "varra_transfer_long",
        "the same, ten epochs",
        "varra",
        "varra2019_transfer_long",
        against="varra_model_2",
    ),
    Variant(
        "varra_laboratories",
        "lite0, cells found, three laboratories more",
        "varra",
        "blood_cells_laboratories",
        against="varra_model_2",
    ),
    Variant(
        "varra_lower_levels",
        "the same, told of lower levels",
        "varra",
        "blood_cells_laboratories",
        builder="crop_classifier",
        model=LITE0 | {"lower_levels": True},
        against="varra_laboratories",
    ),
    *ABLATIONS,
    *map(_longer, ABLATIONS),
    *LONGEST,
    *LARGEST,
    *FULL,
    _scratch("r50", "ResNet-50", "plain", R50, paper=72.61),
    _scratch("r50_asae", "ResNet-50 + ASAE", "asae", R50 | SCALED, against="r50"),
    _scratch("r50_all", "ResNet-50 + hue + sampler + ASAE + GMMCE", "asae", R50 | SCALED, **ALL, against="r50"),
    _scratch("wbcnet", "WBCNet", "wbcnet", {}, paper=69.63, against="r50"),
    _scratch("cell3net", "Cell3Net", "cell3net", {}, paper=70.21, against="r50"),
    _scratch("nlnet", "NLNet on ResNet-50", "nlnet", R50, paper=73.12, against="r50"),
    _scratch("senet", "SENet on ResNet-50", "plain", {"backbone": "seresnet50"}, paper=73.29, against="r50"),
    _scratch("adl", "ADL on ResNet-50", "adl", R50, paper=73.84, against="r50"),
    _scratch("r18", "ResNet-18", "plain", R18),
    _scratch("r18_asae", "ResNet-18 + ASAE", "asae", R18 | SCALED, against="r18"),
    _scratch("r18_all", "ResNet-18 + hue + sampler + ASAE + GMMCE", "asae", R18 | SCALED, **ALL, against="r18"),
    _bccd("bccd_plain", "plain lite0"),
    _bccd("bccd_all", "all", builder="asae", model=ASAE, loss="gmmce", balanced=True, hue=True, against="bccd_plain"),
    _bccd("bccd_no_hue", "all but hue", builder="asae", model=ASAE, loss="gmmce", balanced=True, against="bccd_plain"),
    _varra(1, paper=75.0),
    _varra(3, paper=25.0),
]
