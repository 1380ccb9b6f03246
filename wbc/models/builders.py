"""Builders by name: a card's `builder` names one of these, its `arguments` are the settings' fields.

torchvision and timm, which take seconds to import, are imported by the builders that stand on them.
"""

from collections.abc import Callable

from torch import nn

from wbc.configs import checked
from wbc.models.cards import ModelCard


def _faster_rcnn(card: ModelCard) -> nn.Module:
    from wbc.models import faster_rcnn

    settings = checked(card.arguments, faster_rcnn.FasterRCNNSettings, "arguments")
    return faster_rcnn.build(len(card.classes), card.mean, card.std, settings)


def _one_level(card: ModelCard) -> nn.Module:
    from wbc.models import one_level

    settings = checked(card.arguments, one_level.OneLevelSettings, "arguments")
    return one_level.build(len(card.classes), card.mean, card.std, settings)


def _attentive_rcnn(card: ModelCard) -> nn.Module:
    from wbc.models import attentive_rcnn

    settings = checked(card.arguments, attentive_rcnn.AttentiveRCNNSettings, "arguments")
    return attentive_rcnn.build(len(card.classes), card.mean, card.std, settings)


def _crop_classifier(card: ModelCard) -> nn.Module:
    from wbc.models import crop_classifier

    settings = checked(card.arguments, crop_classifier.CropClassifierSettings, "arguments")
    return crop_classifier.build(len(card.classes), settings)


def _asae(card: ModelCard) -> nn.Module:
    from wbc.models import asae

    return asae.build(len(card.classes), checked(card.arguments, asae.AsaeSettings, "arguments"))


def _adl(card: ModelCard) -> nn.Module:
    from wbc.models import adl

    return adl.build(len(card.classes), checked(card.arguments, adl.AdlSettings, "arguments"))


def _cell3net(card: ModelCard) -> nn.Module:
    from wbc.models import cell3net

    return cell3net.build(len(card.classes), checked(card.arguments, cell3net.Cell3NetSettings, "arguments"))


def _nlnet(card: ModelCard) -> nn.Module:
    from wbc.models import nlnet

    return nlnet.build(len(card.classes), checked(card.arguments, nlnet.NonLocalSettings, "arguments"))


def _wbcnet(card: ModelCard) -> nn.Module:
    from wbc.models import wbcnet

    return wbcnet.build(len(card.classes), checked(card.arguments, wbcnet.WbcNetSettings, "arguments"))


def _plain(card: ModelCard) -> nn.Module:
    from wbc.models import staged

    return staged.build(len(card.classes), checked(card.arguments, staged.StagedSettings, "arguments"))


def _varra(card: ModelCard) -> nn.Module:
    from wbc.models import varra

    return varra.build(len(card.classes), checked(card.arguments, varra.VarraSettings, "arguments"))


def _dark_regions(card: ModelCard) -> nn.Module:
    from wbc.models import dark_regions

    return dark_regions.DarkRegions(checked(card.arguments, dark_regions.DarkRegionsSettings, "arguments"))


BUILDERS: dict[str, Callable[[ModelCard], nn.Module]] = {
    "faster_rcnn": _faster_rcnn,
    "faster_rcnn_one_level": _one_level,
    "attentive_rcnn": _attentive_rcnn,
    "crop_classifier": _crop_classifier,
    "asae": _asae,
    "adl": _adl,
    "cell3net": _cell3net,
    "nlnet": _nlnet,
    "plain": _plain,
    "varra": _varra,
    "wbcnet": _wbcnet,
    "dark_regions": _dark_regions,
}


def build(card: ModelCard) -> nn.Module:
    """The untrained module that a card describes, in eval mode.

    Raises ValueError where the builder is unknown or does not take the card's arguments.
    """
    if card.builder not in BUILDERS:
        raise ValueError(f"builder {card.builder!r} is none of {sorted(BUILDERS)}")
    try:
        return BUILDERS[card.builder](card).eval()
    except (TypeError, RuntimeError) as error:  # timm's word for a backbone it does not know
        raise ValueError(f"builder {card.builder!r} does not take {card.arguments}: {error}") from error
