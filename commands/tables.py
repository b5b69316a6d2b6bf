"""`frugal tables`: every table of the papers, with our figures beside theirs."""

import json
import sys

from rich import box
from rich.console import Console
from rich.table import Table

from commands.options import Options
from studies import table_text, tables

DESCRIPTION = """\
Print the tables of the papers: accuracy as printed beside ours (a dash where it has not been run), and what the
networks cost, counted here in each paper's own convention, with the printed figure and the difference in brackets; then
what we ran. Rows without a config are quoted. Notes say what cannot be reproduced, and why.

  frugal tables
  frugal tables biprop
  frugal tables rexnet --json
"""
WIDE = 160  # characters, where there is no terminal


def main(arguments: list[str] | None = None) -> None:
    """Print them."""
    parser = Options("tables", DESCRIPTION)
    known = tables.methods()
    names = [name.replace("_", "-") for name in known]
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"{', '.join(names)}; the default is all")
    parser.add_argument(
        "--recount", action="store_true", help="count every network again; takes two minutes on two cores"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: exact figures instead of rounded ones")
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    options = parser.parse_args(arguments)
    chosen = [name.replace("-", "_") for name in options.methods] or known
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"no tables of {', '.join(unknown)}: there are {', '.join(names)}")
    found = {}
    for method in chosen:
        costs = tables.count(tables.needed(method)) if options.recount else tables.kept_costs(method)
        about = {"paper": tables.paper(method)["paper"], "tables": tables.tables(method, costs)}
        found[method] = {**about, "runs": tables.runs(method, costs)}
    if options.json:
        print(json.dumps(found, indent=1))
        return
    show = _show_markdown if options.markdown else _show
    for method, content in found.items():
        texts = [table_text.of_paper(table) for table in content["tables"]]
        show(method, content["paper"], [*texts, table_text.of_runs(content["runs"])])


def _show_markdown(method: str, paper: str, texts: list[table_text.Text]) -> None:
    print("\n\n".join([f"## {method}", paper, *(f"### {text.heading}\n\n{text.markdown()}" for text in texts)]))


def _show(method: str, paper: str, texts: list[table_text.Text]) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(f"\n[bold]{paper}[/]\nconfigs in configs/{method}/", highlight=False)
    for text in texts:
        shown = Table(title=f"\n{text.heading}", title_justify="left", caption="\n".join([*text.notes, text.about]))
        shown.box, shown.caption_justify = box.SIMPLE_HEAD, "left"
        for column in text.columns:
            shown.add_column(column.replace(": ", ":\n"), overflow="fold")
        for row, *cells in text.rows:
            shown.add_row(row, *(cell.replace(" (", "\n(") for cell in cells))  # the paper's below ours
        console.print(shown)
