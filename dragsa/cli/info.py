"""`dragsa info`: the networks of some weights, block by block, as loaded."""

from __future__ import annotations

import json
from typing import Any

from dragsa.cli.edit import Session, weights_of
from dragsa.cli.options import Options
from dragsa.cli.progress import Progress
from dragsa.cli.weights import files_taken


def block_table(unet: Any, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the UNet's transformer blocks: names, and the shapes that a pass over a picture of `size` pixels has.

    A grid is (width, height) in cells. The pass is made on the meta device, which has shapes and no values.
    """
    import torch

    from dragsa.model.blocks import TRANSFORMERS, block_name

    z = torch.empty(1, unet.config.latent_channels, size[1] // 8, size[0] // 8, device="meta")
    context = torch.empty(1, 1, unet.config.context_dim, device="meta")
    shapes = {name: torch.empty_like(value, device="meta") for name, value in unet.state_dict().items()}
    taps = tuple(f"{block_name(n)}{kind}" for n in TRANSFORMERS for kind in ("", ".kv"))
    read = torch.func.functional_call(unet, shapes, (z, torch.zeros(1, device="meta"), context), {"taps": taps}).taps
    rows = []
    for n, block in TRANSFORMERS.items():
        name = block_name(n)
        _, channels, height, width = read[name].shape
        row = {"block": name, "diffusers": block.diffusers, "original": block.original, "grid": (width, height)}
        rows.append({**row, "channels": channels, "heads": read[f"{name}.kv"].key.shape[1]})
    return rows


def run_info(options: Options, progress: Progress) -> int:
    """Print the tables or the JSON. Returns 1 if the files were to be verified and one is not known, else 0."""
    from dragsa import loading, pictures

    size: Any = options.get("size", 512)
    size = size if isinstance(size, tuple) else (size, size)
    if min(size) < 8 or size[0] % 8 or size[1] % 8:
        raise ValueError(f"--size: sides must be multiples of 8, came {size[0]}×{size[1]}")
    path = weights_of(options)
    verified = loading.verify(path, files_taken(path, options)) if options.get("verify") else []
    if not options.get("json"):
        for one in verified:  # before the loading, which may fail for the very reason that is looked for
            print(f"{one.sha256}  {one.file}: {one.known or 'not a published file'}")
    sd = Session(progress).model(options)
    rows = block_table(sd.unet, size)
    parts = {"unet": sd.unet, "vae": sd.vae, "text_encoder": sd.text}
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    progress.erase()
    if options.get("json"):
        report = {
            "weights": sd.provenance,
            "stored": list(sd.config.stored),
            "not_used": list(sd.config.unused),
            "notes": list(sd.config.notes),
            "parameters": parameters,
            "size": list(size),
            "blocks": rows,
            "versions": pictures.versions(),
        }
        if verified:
            report["files"] = [{"file": str(one.file), "sha256": one.sha256, "known": one.known} for one in verified]
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print(sd.provenance)
        print("stored as " + ", ".join(sd.config.stored))
        for note in sd.config.notes:
            print(note)
        if sd.config.unused:
            print("not used: " + ", ".join(sd.config.unused))
        print("parameters: " + ", ".join(f"{name} {count:,}" for name, count in parameters.items()))
        lines = [["block", "diffusers", "original", f"grid at {size[0]}×{size[1]} px", "channels", "heads"]]
        for row in rows:
            grid = "×".join(map(str, row["grid"]))
            lines.append([str(value) for value in {**row, "grid": grid}.values()])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    return 0 if all(one.known for one in verified) else 1
