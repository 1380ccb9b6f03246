"""What OME-XML tells of the one picture of a file: its scale, and which channel is red, green or blue."""

from xml.etree import ElementTree

_UM_PER_UNIT = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
_COLOURS = {-16776961: "r", 16711935: "g", 65535: "b"}  # RGBA as a signed number of 32 bits


def pixels_elements(xml: str, width: int, height: int) -> list[ElementTree.Element]:
    """The Pixels elements of pictures of that size in px, or the only one, whatever size it says; [] without XML."""
    try:
        elements = ElementTree.fromstring(xml).findall(".//{*}Pixels")
    except ElementTree.ParseError:
        return []
    if len(elements) == 1:
        return elements
    return [e for e in elements if (e.get("SizeX"), e.get("SizeY")) == (str(width), str(height))]


def um_per_px(elements: list[ElementTree.Element]) -> float | None:
    """PhysicalSizeX in µm, where all of these pictures say the same, and their pixels are square."""
    try:
        sizes = [_physical_size(e, "X") for e in elements]
        sizes += [_physical_size(e, "Y") for e in elements if "PhysicalSizeY" in e.attrib]
    except (KeyError, ValueError):
        return None
    return sizes[0] if sizes and max(sizes) - min(sizes) <= 0.01 * sizes[0] else None


def _physical_size(element: ElementTree.Element, axis: str) -> float:
    return float(element.attrib[f"PhysicalSize{axis}"]) * _UM_PER_UNIT[element.get(f"PhysicalSize{axis}Unit", "µm")]


def rgb_order(elements: list[ElementTree.Element], n: int) -> list[int]:
    """Which of `n` channels are red, green and blue: as named, else as coloured, else in that order.

    Raises ValueError, telling the channels, where they are others.
    """
    channels = elements[0].findall("{*}Channel") if elements else []
    names = [channel.get("Name", "") for channel in channels]
    words = [name.strip().lower() for name in names]
    for colours in (
        [{"red": "r", "green": "g", "blue": "b"}.get(name, name) for name in words],
        [_COLOURS.get(int(channel.get("Color", "-1")), "") for channel in channels],
    ):
        if sorted(colours) == ["b", "g", "r"]:
            return [colours.index(colour) for colour in "rgb"]
    if n == 3 and all(not name or name.startswith("channel") or name.isdigit() for name in words):
        return [0, 1, 2]
    listed = f" ({', '.join(names)})" if any(names) else ""
    raise ValueError(f"has {n} channels{listed}, not red, green and blue")
