"""`vqtool encode`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from vqtool.launcher import place

if TYPE_CHECKING:
    from vqtool.parts import Part


def encode(
    run: RunArgument,
    out: Annotated[Path, typer.Option(metavar="FILE.npy", help="The index file.", show_default=False)],
    data: DataArgument = None,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Rows read at a time, in whole chunks and four of them at the most; changes no index."
        ),
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
    part: Annotated[
        str | None,
        typer.Option(metavar="3/16", help="Only this part of the rows; whoever completes the set joins the parts."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the indices of DATA, or of the run's own data, and a manifest beside them."""
    if extend and not unique:
        raise typer.BadParameter("--extend goes with --unique")
    if unique and (part or place().size > 1):
        raise typer.BadParameter("--unique counts over all rows at once: leave out --part, and use one process")
    from vqtool.parts import Part, encode_part
    from vqtool.tokenizer import load
    from vqtool.transcode import encode_file, encode_unique_file

    own = Part.parse(part) if part else Part.of_process()
    tokenizer = load(run, device)
    if own:
        joined = encode_part(tokenizer, out, own, data, key, batch_size, overwrite)
        if joined is None:
            _tell_part(out, own, as_json)
            return
        manifest = joined
    elif unique:
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


def _tell_part(out: Path, part: "Part", as_json: bool) -> None:
    if as_json:
        print_json({"out": str(out), "part": part.number, "of": part.of, "joined": False})
    else:
        tell(f"{out}: part {part.number} of {part.of} is done; others are still to come")
