"""Write into README.md and docs/ what is made of data: make docs

Every network of the papers' tables is counted anew into results/<method>/costs.json; of these, of results/ and of the
papers' figures come the tables between the markers "<!-- tables METHOD ... -->" or "<!-- runs METHOD/FOLDER ... -->"
(of configs whose paths begin so) and "<!-- end -->", and the pictures of accuracy against cost.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from studies import cost_pictures, table_text, tables

ROOT = tables.ROOT
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKED = re.compile(r"(<!-- (tables|runs)((?: [\w/]+)+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Count, write, draw."""
    for method in tables.methods():
        counted = tables.count(tables.needed(method))
        (tables.RESULTS / method / "costs.json").write_text(json.dumps(counted, indent=1) + "\n")
    for page in PAGES:
        page.write_text(written(page))
    for path, methods in cost_pictures.pictures().items():
        cost_pictures.draw(cost_pictures.panels(methods), path)


def written(page: Path) -> str:
    """A page with what stands between its markers made anew."""

    def fill(match: re.Match[str]) -> str:
        begin, kind, wanted, end = match.groups()
        parts = _tables if kind == "tables" else _runs
        return "\n".join([begin, "\n\n".join(parts(wanted.split())), "", end])

    return MARKED.sub(fill, page.read_text())


def _tables(methods: list[str]) -> Iterator[str]:
    for method in methods:
        for table in tables.tables(method, tables.kept_costs(method)):
            text = table_text.of_paper(table)
            yield f"**{text.heading}**\n\n{text.markdown()}"


def _runs(paths: list[str]) -> Iterator[str]:
    found = []
    for path in paths:
        method = path.partition("/")[0]
        runs = tables.runs(method, tables.kept_costs(method))
        found += [run for run in runs if run["config"].startswith(f"configs/{path}")]
    yield table_text.of_runs(found).markdown()


if __name__ == "__main__":
    main()
