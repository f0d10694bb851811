"""Show an edit's inside on the command line: --explain, --frames and --trace."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

from dragsa import files
from dragsa.cli.options import Options
from dragsa.cli.outputs import FOLDERS, is_folder, is_kept
from dragsa.cli.progress import Progress

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from dragsa import pictures
    from dragsa.config import EditConfig
    from dragsa.loading import StableDiffusion
    from dragsa.looking import Edited, Pass

EVERY = 5  # updates from one frame to the next
SECONDS = 0.2  # that a frame of a GIF is shown for
BY_VAE = {"encode": "z_0 of the picture, by the VAE", "decode": "the picture of z_0, by the VAE"}


def check_looking(options: Options, config: EditConfig) -> None:
    """Raise an error unless there is something for frames and trace to show, and the passes can be told."""
    if "frames" in options and "drag" not in options:
        raise ValueError("--frames: there is no drag whose updates they would show")
    if "every" in options and not {"frames", "trace"} & options.keys():
        raise ValueError("--every: of which pictures? give --frames or --trace")
    if tells(options) and config.drag.compile not in ("auto", "off"):
        raise ValueError("--explain and --trace need --compile off: a compiled pass tells nothing")


def tells(options: Options) -> bool:
    """Tell whether the passes of the network are wanted."""
    return bool(options.get("explain")) or "trace" in options


class Looker:
    """An observer that hands events on to the progress, and keeps of an edit what is to be shown of it."""

    def __init__(self, options: Options, config: EditConfig, progress: Progress) -> None:
        self.options, self.config, self.progress = options, config, progress
        self.every = options.get("every", EVERY) if {"frames", "trace"} & options.keys() else 0
        self.latents: dict[int, Tensor] = {}
        self.said: list[str] = []
        self.open = True
        self._stage, self._last = "", 0
        self._alike: list[Pass] = []

    def __call__(self, event: pictures.StageProgress | pictures.DragProgress) -> str | None:
        from dragsa import pictures

        if isinstance(event, pictures.DragProgress):
            self._keep(event)
        elif event.done == 0 or event.done == event.total:
            self._end_of_stage(event.stage if event.done == 0 else "")
        return self.progress(event)

    def _keep(self, event: pictures.DragProgress) -> None:
        """Keep the latents of every so many updates, and of the last."""
        if self.every and event.latent is not None:
            if self._last % self.every:
                del self.latents[self._last]
            self.latents[event.update], self._last = event.latent, event.update

    def tell(self, one: Pass) -> None:
        """Take one pass of the network, and say those before it where it differs from them."""
        from dragsa import looking

        if self.open:
            if self._alike and not looking.alike(self._alike[-1], one):
                self._say_passes()
            self._alike.append(one)

    def _end_of_stage(self, following: str) -> None:
        if self._alike:
            self._say_passes()
        elif following in BY_VAE:
            self._say(f"{following}: {BY_VAE[following]}")
        self._stage = following

    def _say_passes(self) -> None:
        from dragsa import looking
        from dragsa.ddim import Schedule

        timesteps = Schedule(self.config.steps, self.config.variant).timesteps.tolist()
        reads = f"; {self.config.drag.tap} is read" if self._stage == "drag" else ""
        self._say(f"{self._stage or 'look'}: {looking.sentence(self._alike, timesteps)}{reads}")
        self._alike = []

    def _say(self, text: str) -> None:
        if tells(self.options):
            self.said.append(text)
        if self.options.get("explain"):
            self.progress.explain(text)

    def close(self) -> None:
        """Tell no more: passes from here on are not the edit's."""
        self._end_of_stage("")
        self.open = False


def watched(sd: StableDiffusion, tell: Callable[[Pass], object]) -> StableDiffusion:
    """Return the model with a network that tells its passes."""
    from dataclasses import replace

    from dragsa import looking

    return replace(sd, unet=looking.watched(sd.unet, tell))


def write_looking(options: Options, sd: StableDiffusion, edited: Edited) -> None:
    """Write frames and trace, whole or not at all."""
    from dragsa import looking, pictures

    force = options.get("force", False)
    replaced = FOLDERS if force else {}
    if "frames" in options and not is_kept(options, "frames"):
        # A drag that ended before its first update has left the picture as it was.
        made = looking.frames_of(sd, edited) or {0: pictures.to_rgb(edited.source.picture)}
        if is_folder(options, "frames"):
            with files.whole_folder(options["frames"], replaced.get("frames")) as folder:
                for update, picture in made.items():
                    pictures.save_picture(picture, folder / f"{update:04}.png")
        else:
            files.save_bytes(gif([*made.values()]), options["frames"], force)
    if "trace" in options and not is_kept(options, "trace"):
        with files.whole_folder(options["trace"], replaced.get("trace")) as folder:
            looking.write(folder, sd, edited)


def gif(frames: list[Image.Image]) -> bytes:
    """Return an animated GIF that begins again without end; its last frame stands five times as long."""
    data, shown = BytesIO(), round(1000 * SECONDS)
    durations: Any = [shown] * (len(frames) - 1) + [5 * shown]
    first, *rest = [frame.convert("RGB") for frame in frames]
    first.save(data, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return data.getvalue()
