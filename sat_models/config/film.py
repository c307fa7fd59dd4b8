"""Sizes of models that make films out of noise, all frames at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sat_models.config.base import require_divides
from sat_models.config.diffusion import LatentTransformerConfig
from sat_models.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class FilmConfig(LatentTransformerConfig):
    """A transformer of SAT's that makes films, of a text, or of an image with a text.

    Where a token holds two frames of latents, films are made with one more than their frames need: the first, which is
    thrown away.

    Attributes:
        out_channels: of the latents; where an image is given, `in_channels` are twice as many.
        patch_frames: frames of latents in a token.
        latent_frames, latent_height, latent_width: of the largest film.
        frames_per_latent: frames of a film in one of its latents', but for the first, which is one.
        usual_frames, fps: of a film where nobody says otherwise, and how fast it is shown.
        usual_height, usual_width: in pixels; 0: those of the largest film.
        frame_step: numbers of frames that it was trained on are one more than a multiple of this.
    """

    out_channels: int
    patch_frames: int = 1
    latent_frames: int
    latent_height: int
    latent_width: int
    frames_per_latent: int = 4
    usual_frames: int
    fps: int
    usual_height: int = 0
    usual_width: int = 0
    frame_step: int = 8

    TASK: ClassVar[str] = "film"
    MAY_BE_0: ClassVar[frozenset[str]] = frozenset(("usual_height", "usual_width"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.in_channels not in (self.out_channels, 2 * self.out_channels):
            raise ConfigError(
                f"in_channels = {self.in_channels}, out_channels = {self.out_channels}; they must be equal, or the "
                "first twice as many where an image is given"
            )
        for side in ("latent_height", "latent_width"):
            require_divides(side, getattr(self, side), self.patch_size, "patch_size")
        require_divides("latent_frames", self.latent_frames, self.patch_frames, "patch_frames")

    @property
    def takes_image(self) -> bool:
        """A film begins with an image that is given."""
        return self.in_channels != self.out_channels

    @property
    def latent_channels(self) -> int:
        """See `LatentModelConfig`."""
        return self.out_channels

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of the largest film: times, rows, columns."""
        side = self.patch_size
        return self.latent_frames // self.patch_frames, self.latent_height // side, self.latent_width // side

    @property
    def usual_size(self) -> tuple[int, int]:
        """Width and height in pixels where nobody names any."""
        most = self.latent_width * self.pixels_per_latent, self.latent_height * self.pixels_per_latent
        return min(self.usual_width or most[0], most[0]), min(self.usual_height or most[1], most[1])

    @property
    def one_size(self) -> bool:
        """Films of one size alone: so it is in CogVideoX 1.0."""
        return self.patch_frames == 1

    @property
    def least_latents(self) -> tuple[int, ...]:
        """See `LatentModelConfig`."""
        side = self.pixels_per_latent * self.patch_size
        size = self.usual_size if self.one_size else (side, side)
        return self.film_shape(1, *size)

    @property
    def most_frames(self) -> int:
        """Of a film."""
        return (self.latent_frames - self.thrown_away - 1) * self.frames_per_latent + 1

    @property
    def thrown_away(self) -> int:
        """Frames of latents that are made before those of the film: so many of them as tokens are whole."""
        return self.patch_frames - 1

    def frames_allowed(self) -> list[int]:
        """The numbers of frames that a film may have: its latents' are one more than a multiple of two, so that the
        decoder can take them two by two."""
        return list(range(1, self.most_frames + 1, 2 * self.frames_per_latent))

    def check_frames(self, frames: int) -> None:
        """Raise InputError for a number of frames that no film of this model has."""
        allowed = self.frames_allowed()
        if frames not in allowed or isinstance(frames, bool):
            raise InputError(
                f"frames is {frames!r:.40}; films of this model have {', '.join(map(str, allowed))} frames"
            )

    def check_size(self, width: int, height: int) -> None:
        """Raise InputError for a size that has no positions; both in pixels."""
        most = self.latent_width * self.pixels_per_latent, self.latent_height * self.pixels_per_latent
        multiple = self.pixels_per_latent * self.patch_size
        rule = f"films of this model are {most[0]}x{most[1]}, as its positions are"
        if not self.one_size:
            rule = (
                f"width and height are multiples of {multiple}, at most {most[0]} and {most[1]}, which its positions "
                f"reach; it was trained on {'x'.join(map(str, self.usual_size))}"
            )
        sides = (width, height)
        if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
            raise InputError(f"the size is {sides!r:.60}; it must be two whole numbers, width and height: {rule}")
        good = (
            sides == most
            if self.one_size
            else all(0 < side <= limit and side % multiple == 0 for side, limit in zip(sides, most, strict=True))
        )
        if not good:
            raise InputError(f"the size {width}x{height} cannot be made: {rule}")

    def film_shape(self, frames: int, width: int, height: int) -> tuple[int, int, int, int]:
        """Frames, channels, height and width of the latents of a film, with those that are thrown away."""
        times = (frames - 1) // self.frames_per_latent + 1 + self.thrown_away
        return times, self.out_channels, height // self.pixels_per_latent, width // self.pixels_per_latent

    @property
    def image_scale(self) -> float:
        """What the latents of a given image are multiplied by."""
        return self.latent_scale
