"""The command `vqtool encode`."""

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
    print_line,
)
from vqtool.runtime.torchrun import rank_info

if TYPE_CHECKING:
    from vqtool.inference.parts import Part


def encode(
    run: RunArgument,
    out: Annotated[Path, typer.Option(metavar="FILE.npy", help="Index file to write.", show_default=False)],
    data: DataArgument = None,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Rows to read at a time, rounded up to whole chunks, four at most. Does not change indices."
        ),
    ] = 4096,
    key: KeyOption = None,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    unique: Annotated[
        bool, typer.Option("--unique", help="Append a level that makes the id of every row unique (semantic ids).")
    ] = False,
    extend: Annotated[
        Path | None,
        typer.Option(metavar="OLD.npy", help="With --unique: index file of the first rows; their ids stay the same."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Encode part I of N only, e.g. 3/16. The last part to finish joins all parts."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Encode data to an index file and its manifest.

    Without DATA, encode the run's own data, all rows in order.
    """
    if extend and not unique:
        raise typer.BadParameter("--extend needs --unique")
    if unique and (part or rank_info().world_size > 1):
        raise typer.BadParameter("--unique needs all rows in one process; run one process without --part")
    from vqtool.inference.encode import encode_file
    from vqtool.inference.parts import Part, encode_part
    from vqtool.inference.semantic_ids import encode_unique_file
    from vqtool.inference.tokenizer import load

    this_part = Part.parse(part) if part else Part.from_environment()
    tokenizer = load(run, device)
    if this_part:
        joined = encode_part(tokenizer, out, this_part, data, key, batch_size, overwrite)
        if joined is None:
            _print_part(out, this_part, as_json)
            return
        manifest = joined
    elif unique:
        manifest = encode_unique_file(tokenizer, out, data, key, batch_size, overwrite, extend)
    else:
        manifest = encode_file(tokenizer, out, data, key, batch_size, overwrite)
    if as_json:
        print_json({"out": str(out), **asdict(manifest)})
        return
    print_line(
        f"{out}: {manifest.dtype} {tuple(manifest.shape)}, grid {tuple(manifest.grid)}; "
        f"manifest: {out.with_suffix('.json')}"
    )


def _print_part(out: Path, part: "Part", as_json: bool) -> None:
    if as_json:
        print_json({"out": str(out), "part": part.number, "of": part.total, "joined": False})
    else:
        print_line(f"{out}: part {part.number} of {part.total} written; other parts are missing")
