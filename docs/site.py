"""The pages of the documentation site, made of the repository's own Markdown: `make docs` builds them.

The README becomes the first page. Links between files become links between pages; a link to a file that is no page
becomes its name.
"""

import re
import shutil
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
PAGES = ROOT / ".site"
AT_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")


def page_of(file: PurePosixPath) -> str | None:
    """The page that a file of the repository becomes, or the picture's place; None where it becomes none."""
    if str(file) in AT_ROOT:
        return AT_ROOT[str(file)]
    return str(file.relative_to("docs")) if file.is_relative_to("docs") and file.suffix != ".py" else None


def with_links_of_site(text: str, file: PurePosixPath) -> str:
    """The Markdown of a file with its links as they are on the site. Raises FileNotFoundError for a broken one."""

    def link(match: re.Match[str]) -> str:
        picture, words, target, anchor = match.groups()
        parts: list[str] = []
        for part in (file.parent / target).parts:
            if part == "..":
                parts.pop()
            else:
                parts.append(part)
        linked = PurePosixPath(*parts)
        if not (ROOT / linked).exists():
            raise FileNotFoundError(f"{file}: no such file: {target}")
        page = page_of(linked)
        return f"{picture}[{words}]({page}{anchor or ''})" if page else f"`{linked}`"

    return LINK.sub(link, text)


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir()
    for file in (*map(PurePosixPath, AT_ROOT), *(PurePosixPath("docs", p.name) for p in ROOT.glob("docs/*.md"))):
        page = page_of(file)
        assert page is not None
        (PAGES / page).write_text(with_links_of_site((ROOT / file).read_text(), file))
    if (ROOT / "docs" / "pictures").is_dir():
        shutil.copytree(ROOT / "docs" / "pictures", PAGES / "pictures")


if __name__ == "__main__":
    main()
