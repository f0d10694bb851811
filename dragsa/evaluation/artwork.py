"""Artwork to train and measure on: a thousand things, each drawn by three teams of artists in three styles.

The drawings are emoji, published as SVG text in packages of the npm registry: Microsoft's Fluent Emoji (MIT), Google's
Noto Emoji (Apache 2.0) and Twemoji (CC BY 4.0, by Twitter and contributors). A name that is in all three is the same
thing in three styles, so that style is something that can be measured.

`fetch` downloads the packages and renders every drawing once; `Sprites` holds the pictures; `shipped` are the few that
the benchmark needs.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from dragsa import files

REGISTRY = "https://registry.npmjs.org/@iconify-json"
SIDE = 128  # pixels of a sprite
SHIPPED = Path(__file__).resolve().parents[2] / "scripts" / "artwork"


class Package(NamedTuple):
    """A style's package: its name in the registry, the version, and the archive's hash."""

    name: str
    version: str
    sha256: str

    @property
    def address(self) -> str:
        return f"{REGISTRY}/{self.name}/-/{self.name}-{self.version}.tgz"


PACKAGES = {
    "fluent": Package("fluent-emoji", "1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"),
    "noto": Package("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "twemoji": Package("twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
}
STYLES = tuple(PACKAGES)

# Things that have a body: no people, flags, letters or arrows; nor the clock's two dozen faces.
CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "Smileys & Emotion",
    "Travel & Places",
)
LEFT_OUT = re.compile(r"(oclock|thirty|button|skin-tone)$")
LONGEST = 4  # words of a name


class Sprites:
    """Drawings by name and style, as pictures with premultiplied alpha."""

    def __init__(self, names: Sequence[str], pictures: Tensor) -> None:
        """Keep `pictures`, uint8 (names, styles, 4, SIDE, SIDE), the colours times their alpha."""
        self.names, self._pictures = tuple(names), pictures
        self._number = {name: number for number, name in enumerate(self.names)}

    def picture(self, name: str, style: str) -> Tensor:
        """Return a drawing as float (4, SIDE, SIDE) in [0, 1]: red, green and blue times alpha, and alpha.

        Raises ValueError for a name or a style that is not there.
        """
        if name not in self._number or style not in STYLES:
            raise ValueError(f"no drawing of {name!r} in the style {style!r}")
        return self._pictures[self._number[name], STYLES.index(style)].float() / 255

    def only(self, names: Iterable[str]) -> Sprites:
        """Return those of the given names."""
        names = sorted(set(names))
        return Sprites(names, self._pictures[[self._number[name] for name in names]])


def held_out(name: str) -> str | None:
    """Return the style in which a thing is kept from training, "all" for one of ten, None for most.

    It follows from the name alone: of ten names one is held out, and of another one a single style.
    """
    number = zlib.crc32(name.encode())
    return {0: "all", 1: STYLES[number // 10 % len(STYLES)]}.get(number % 10)


def is_trained(name: str, style: str) -> bool:
    """Return True if a drawing may be shown in training."""
    return held_out(name) not in ("all", style)


# ------------------------------------------------------------------------------------------------- the whole artwork


def fetch(path: Path, overwrite: bool = False) -> Sprites:
    """Download the three packages, render every drawing and write them all to a safetensors file; return them.

    Needs the extra `artwork` (resvg-py). Raises OSError where the registry cannot be reached, ValueError for an archive
    that is not the published one, and what `files` raises for a path that is there.
    """
    archives = {style: _download(package) for style, package in PACKAGES.items()}
    return render(archives, path, overwrite)


def _download(package: Package) -> bytes:
    try:
        with urllib.request.urlopen(package.address, timeout=60) as answer:
            archive: bytes = answer.read()
    except urllib.error.URLError as error:
        raise OSError(f"{package.address} could not be read ({error.reason}); the artwork comes from there") from None
    if hashlib.sha256(archive).hexdigest() != package.sha256:
        raise ValueError(f"{package.address} is not the archive that is expected: its sha256 is another")
    return archive


def render(archives: Mapping[str, bytes], path: Path, overwrite: bool = False) -> Sprites:
    """Render the drawings of the packages' archives, by style, and write them to a safetensors file; return them."""
    icons = {style: _read(archive, "icons.json") for style, archive in archives.items()}
    categories = _read(archives["noto"], "metadata.json")["categories"]  # Fluent's package has none
    names = sorted(things(icons.values(), categories))
    pictures = torch.stack([torch.stack([_rendered(icons[style], name) for style in STYLES]) for name in names])
    header = {"names": json.dumps(names)}
    files.save_bytes(safetensors.torch.save({"sprites": pictures}, header), path, overwrite=overwrite)
    return Sprites(names, pictures)


def load(path: Path) -> Sprites:
    """Return the drawings of a file that `fetch` wrote. Raises OSError or ValueError for one that holds none."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return Sprites(json.loads(file.metadata()["names"]), file.get_tensor("sprites"))
    except (safetensors.SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: no artwork in it ({error})") from None


# ------------------------------------------------------------------------------------------------ a few that ship


def write_folder(sprites: Sprites, folder: Path) -> None:
    """Write drawings as <style>/<name>.webp, without loss. Raises what `files` raises for a file that is there."""
    for style in STYLES:
        for name in sprites.names:
            red_green_blue_alpha = (255 * sprites.picture(name, style)).round()
            colours, alpha = red_green_blue_alpha[:3], red_green_blue_alpha[3:]
            straight = torch.cat([(255 * colours / alpha.clamp(min=1)).round(), alpha]).to(torch.uint8)
            data = io.BytesIO()
            Image.fromarray(straight.permute(1, 2, 0).numpy()).save(data, "WEBP", lossless=True, quality=100, method=6)
            (folder / style).mkdir(parents=True, exist_ok=True)
            files.save_bytes(data.getvalue(), folder / style / f"{name}.webp")


def read_folder(folder: Path) -> Sprites:
    """Return the drawings that `write_folder` wrote. Raises OSError or ValueError for a folder without them."""
    names = sorted(file.stem for file in folder.glob(f"{STYLES[0]}/*.webp"))
    if not names:
        raise ValueError(f"{folder}: no artwork in it; it should have {STYLES[0]}/<name>.webp and the other styles'")
    pictures = [
        torch.stack([premultiplied(Image.open(folder / style / f"{name}.webp")) for style in STYLES]) for name in names
    ]
    return Sprites(names, torch.stack(pictures))


@cache
def shipped() -> Sprites:
    """Return the drawings that the benchmark's scenes show. A checkout has them."""
    return read_folder(SHIPPED)


# ------------------------------------------------------------------------------------------------------- archives


def _read(archive: bytes, name: str) -> Any:
    """Return the values of a JSON file of a package's archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile(f"package/{name}")
        assert member is not None
        return json.loads(member.read())


def things(packages: Iterable[Mapping[str, Any]], categories: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the names of drawings in all packages that are things with a body, of `LONGEST` words at most."""
    everywhere = set.intersection(*(set(package["icons"]) for package in packages))
    named = {name for category in CATEGORIES for name in categories.get(category, ())}
    return {name for name in everywhere & named if not LEFT_OUT.search(name) and name.count("-") < LONGEST}


def _rendered(icons: Mapping[str, Any], name: str) -> Tensor:
    """Return a drawing as uint8 (4, SIDE, SIDE), colours premultiplied by alpha."""
    import resvg_py  # an extra, which only rendering needs

    drawing = icons["icons"][name]
    left, top, width, height = (
        drawing.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    side = max(width, height)  # a few boxes are not square: their drawing is put into the middle of one that is
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{drawing["body"]}</svg>'
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True))
    return premultiplied(Image.open(io.BytesIO(png)))


def premultiplied(picture: Image.Image) -> Tensor:
    """Return a picture with alpha as uint8 (4, H, W), colours premultiplied."""
    values = torch.from_numpy(np.array(picture.convert("RGBA"))).permute(2, 0, 1).float()
    return torch.cat([values[:3] * values[3:] / 255, values[3:]]).round().to(torch.uint8)
