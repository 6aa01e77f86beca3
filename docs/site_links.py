"""What the site changes in a page that GitHub shows as it is: links that leave docs/, and comments.

mkdocs warns of every link whose target it does not publish. A link to a file of this repository outside docs/ becomes
the file's path; a link to nothing stays, so that the strict build fails on it. The comments that mark generated tables
would join the lines below them to one HTML block.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r'(?<!!)\[([^\]\n]*)\]\((\.\./[^)\s#]*)(#[^)\s]*)?\)')
COMMENT = re.compile(r'^<!-- [\w-]+:(start|end) -->$', re.MULTILINE)


def name_files(markdown: str, page: Path) -> str:
    """Replace every link from `page` to a file of this repository outside docs/ by 'text (`path`)'."""

    def named(link: re.Match[str]) -> str:
        target = (page.parent / link[2]).resolve()
        if target.is_relative_to(ROOT / 'docs') or not target.is_relative_to(ROOT) or not target.exists():
            return link[0]
        path = target.relative_to(ROOT).as_posix()
        return f'`{path}`' if link[1].strip('`').removeprefix('../') in path else f'{link[1]} (`{path}`)'

    return LINK.sub(named, markdown)


def on_page_markdown(markdown, page, **_):
    """Called by mkdocs with the text of every page."""
    return COMMENT.sub('', name_files(markdown, Path(page.file.abs_src_path)))
