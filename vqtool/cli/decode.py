"""The command `vqtool decode`."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.output import DeviceOption, JsonOption, OverwriteOption, RunArgument, print_json, print_line


def decode(
    run: RunArgument,
    indices: Annotated[
        Path, typer.Argument(metavar="FILE.npy", help="Index file, as written by encode.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="DATA.npy", help="Array file to write.", show_default=False)],
    levels: Annotated[
        int | None, typer.Option(min=1, help="Number of levels to decode, from the first; default: all.")
    ] = None,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode an index file to an array.

    The array has the units, layout and dtype of the training data; bfloat16 is written as float32.
    """
    from vqtool.inference.decode import decode_file
    from vqtool.inference.tokenizer import load

    shape, dtype = decode_file(load(run, device), indices, out, overwrite, levels)
    if as_json:
        print_json({"out": str(out), "shape": shape, "dtype": dtype})
        return
    print_line(f"{out}: {dtype} {shape}")
