"""`vqtool decode`."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.output import DeviceOption, JsonOption, OverwriteOption, RunArgument, print_json, tell


def decode(
    run: RunArgument,
    indices: Annotated[Path, typer.Argument(metavar="FILE.npy", help="An index file.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="DATA.npy", help="The array to write.", show_default=False)],
    levels: Annotated[int | None, typer.Option(min=1, help="Decode from the first levels alone.")] = None,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the array that an index file stands for, in the data's own units and type."""
    from vqtool.tokenizer import load
    from vqtool.transcode import decode_file

    shape, dtype = decode_file(load(run, device), indices, out, overwrite, levels)
    if as_json:
        print_json({"out": str(out), "shape": shape, "dtype": dtype})
        return
    tell(f"{out}: {dtype} {shape}")
