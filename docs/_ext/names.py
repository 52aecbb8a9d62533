"""Long names in tables and signatures may break behind dots, underscores and brackets, not within a word.

On a narrow screen a column is then as wide as its longest word. What is copied from the page has no breaks.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

PIECE = re.compile(r".+?(?:[._(\[=,/]+(?![)\]._(\[=,/])|$)", re.DOTALL)


class BreakNames(SphinxPostTransform):
    """Put ``<wbr>`` between the pieces of names."""

    default_priority = 900
    formats = ("html",)

    def run(self, **kwargs: object) -> None:
        """Change literals of tables, and names of signatures."""
        found = [literal for table in self.document.findall(nodes.table) for literal in table.findall(nodes.literal)]
        found += [name for kind in (addnodes.desc_name, addnodes.desc_addname) for name in self.document.findall(kind)]
        for holder in found:
            for text in [child for child in holder.children if isinstance(child, nodes.Text)]:
                pieces: list[nodes.Node] = []
                for piece in PIECE.findall(text.astext()):
                    pieces += (
                        [nodes.raw("", "<wbr>", format="html"), nodes.Text(piece)] if pieces else [nodes.Text(piece)]
                    )
                holder.replace(text, pieces)
            if isinstance(holder, addnodes.desc_addname):  # the name follows
                holder += nodes.raw("", "<wbr>", format="html")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_post_transform(BreakNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
