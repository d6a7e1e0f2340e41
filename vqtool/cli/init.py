"""The command `vqtool init`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.output import print_line, print_rich, table


def init(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Recipe to write; default: list all recipes.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Config file to write; default: RECIPE.yaml.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Also write schema.json beside it, for completion in editors.")
    ] = False,
) -> None:
    """List the shipped recipes, or write one as a config to start from."""
    from vqtool.cli.recipes import recipes, write_recipe

    if recipe is None:
        if out is not None or schema:
            raise typer.BadParameter("--out and --schema need a RECIPE to write")
        print_rich(table(list(recipes().items())))
        return
    written = write_recipe(recipe, out, schema)
    command = f"vqtool train --config {shlex.quote(str(written))}"
    names = f"{written} and {written.with_name('schema.json')}" if schema else f"{written}"
    print_line(f"{names} written; next:")
    print_line(f"  {command}  # on synthetic data")
    print_line(f"  {command} --set data.path=YOUR.npy  # on your own array")
