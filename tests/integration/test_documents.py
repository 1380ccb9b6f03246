"""The manual tells the truth about the code: files, functions and links that it names are there."""

import re
import runpy
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*map(PurePosixPath, ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
DOCUMENTS += [PurePosixPath("docs", path.name) for path in (ROOT / "docs").glob("*.md")]
MANUAL = [file for file in DOCUMENTS if file.name not in ("decisions.md", "CHANGELOG.md")]


@pytest.mark.parametrize("file", MANUAL, ids=str)
def test_every_file_that_is_named_exists(file: PurePosixPath) -> None:
    named = set(re.findall(r"`((?:wbc|flows|tests|configs|deployments|docs)/[\w./-]*)`", (ROOT / file).read_text()))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_function_is_where_the_architecture_says() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([\w/]+\.py)`[^`|\n]{0,12}?\(`(\w+)`\)", text)
    assert len(named) > 8
    for file, function in named:
        source = next(p for p in (ROOT / file, ROOT / "wbc" / file) if p.exists()).read_text()
        assert re.search(rf"^(def|class) {function}\b", source, re.MULTILINE), f"{function} is not in {file}"


def test_every_room_of_the_house_is_in_the_plan() -> None:
    plan = (ROOT / "docs" / "architecture.md").read_text()
    folders = [p.parent for p in (*ROOT.glob("wbc/*/__init__.py"), *ROOT.glob("flows/*/__init__.py"))]
    assert [folder.name for folder in folders if f"  {folder.name}/" not in plan] == []


@pytest.mark.parametrize("file", DOCUMENTS, ids=str)
def test_every_link_leads_somewhere(file: PurePosixPath) -> None:
    links = runpy.run_path(str(ROOT / "docs" / "site.py"))["with_links_of_site"]
    links((ROOT / file).read_text(), file)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"\bmake ([a-z-]+)`", "\n".join((ROOT / file).read_text() for file in MANUAL)))
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    assert targets <= set(phony)
    assert len(targets) > 4


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert pictures
    assert all(path.stat().st_size < 200_000 for path in pictures)
