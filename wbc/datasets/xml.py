"""XML with the line of every element, and nothing in it that could do harm: no document types, no endless nesting."""

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

MOST_DEEP = 100


class LinedElement(Element):
    """An element that knows the line it begins in, from 1."""

    line: int = 0


def read_xml(path: Path) -> LinedElement:
    """The root of an XML file.

    Raises ValueError, naming file and line, where it is no XML, declares a document type (entities of which may grow
    without end) or nests deeper than 100 elements.
    """
    parser, depth = expat.ParserCreate(), 0
    builder = TreeBuilder(element_factory=LinedElement)

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MOST_DEEP:
            raise ValueError(f"line {parser.CurrentLineNumber}: elements nest deeper than {MOST_DEEP}")
        element = builder.start(tag, attributes)
        assert isinstance(element, LinedElement)
        element.line = parser.CurrentLineNumber

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise ValueError(f"line {parser.CurrentLineNumber}: a document type is declared, which annotations do not need")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    parser.buffer_text = True
    try:
        parser.Parse(path.read_bytes(), True)
        root = builder.close()
    except (expat.ExpatError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not XML ({error})") from error
    assert isinstance(root, LinedElement)
    return root
