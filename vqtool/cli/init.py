"""`vqtool init`: the shipped recipes."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.output import print_rich, table, tell


def init(
    recipe: Annotated[str | None, typer.Argument(help="Which to write out; left out, they are listed.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to; left out, RECIPE.yaml.")] = None,
) -> None:
    """List the shipped recipes, or write one out to start from."""
    from vqtool.recipes import recipes, write_recipe

    if recipe is None:
        if out is not None:
            raise typer.BadParameter("--out needs a RECIPE to write")
        print_rich(table([(name, summary) for name, summary in recipes().items()]))
        return
    written = write_recipe(recipe, out)
    tell(f"{written}: written; next: vqtool train --config {written}")
