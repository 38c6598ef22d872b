"""Writes the figures and tables of README and docs; measures nothing itself.

    python -m benchmarks publish

Takes half a minute.

The rows are those of benchmarks/results. A tables.py beside the scripts of a subject makes its
tables, which stand in a page between `<!-- table: NAME -->` and `<!-- end -->`, and its figures,
docs/figures/NAME.png.
"""

from __future__ import annotations

import re

from benchmarks import common
from benchmarks.attention import tables as attention
from benchmarks.clustered import tables as clustered
from benchmarks.encoders import tables as encoders
from benchmarks.recipes import lra_tables as lra
from benchmarks.recipes import tables as recipes
from benchmarks.scale import tables as scale
from benchmarks.slides import tables as slides

PAGES = (common.DOCS.parent / "README.md", *sorted(common.DOCS.glob("*.md")))
TABLES = {
    **attention.TABLES,
    **encoders.TABLES,
    **clustered.TABLES,
    **recipes.TABLES,
    **lra.TABLES,
    **scale.TABLES,
    **slides.TABLES,
}
FIGURES = {
    **attention.FIGURES,
    **clustered.FIGURES,
    **recipes.FIGURES,
    **lra.FIGURES,
    **scale.FIGURES,
}


def main() -> None:
    common.command_line(__doc__).parse_args()
    for name, figure in FIGURES.items():
        figure().savefig(common.FIGURES / f"{name}.png")
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """Returns the page with every table made anew."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, t=make: f"{m[1]}\n{t()}\n\n{m[2]}", text, flags=re.S)
    return text
