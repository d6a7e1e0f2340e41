"""`vqtool encode`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.output import (
    DataArgument,
    DeviceOption,
    JsonOption,
    KeyOption,
    OverwriteOption,
    RunArgument,
    print_json,
    tell,
)


def encode(
    run: RunArgument,
    out: Annotated[Path, typer.Option(metavar="FILE.npy", help="The index file.", show_default=False)],
    data: DataArgument = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows read at a time: bounds memory, changes no index.")
    ] = 4096,
    key: KeyOption = None,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    unique: Annotated[
        bool, typer.Option("--unique", help="Append a level that makes every row unique: semantic ids.")
    ] = False,
    extend: Annotated[
        Path | None,
        typer.Option(metavar="OLD.npy", help="With --unique: an earlier file of the first rows, whose ids stay."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the indices of DATA, or of the run's own data, and a manifest beside them."""
    if extend and not unique:
        raise typer.BadParameter("--extend goes with --unique")
    from vqtool.tokenizer import load
    from vqtool.transcode import encode_file, encode_unique_file

    tokenizer = load(run, device)
    if unique:
        manifest = encode_unique_file(tokenizer, out, data, key, batch_size, overwrite, extend)
    else:
        manifest = encode_file(tokenizer, out, data, key, batch_size, overwrite)
    if as_json:
        print_json({"out": str(out), **asdict(manifest)})
        return
    tell(
        f"{out}: {manifest.dtype} {tuple(manifest.shape)}, grid {tuple(manifest.grid)}; "
        f"what it is stands in {out.with_suffix('.json')}"
    )
