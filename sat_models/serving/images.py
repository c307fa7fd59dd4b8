"""Pictures that strangers send: what a server reads, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from sat_models.errors import InputError
from sat_models.processing.fetch import TIMEOUT
from sat_models.processing.image import kind_of, load_image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""File types that are read; of an animation, the first frame."""


@dataclass(frozen=True)
class ImagePolicy:
    """Limits on pictures that come by URL. A path of this machine is never opened.

    Attributes:
        hosts: where http(s) pictures may come from (see `processing.fetch.download`); none: `data:` URLs only.
        max_bytes: encoded size.
        max_pixels: width x height, checked before anything is decoded.
        timeout: seconds for one download.
    """

    hosts: tuple[str, ...] = ()
    max_bytes: int = 20 * 2**20
    max_pixels: int = 40_000_000
    timeout: float = TIMEOUT

    def open(self, url: str) -> Image.Image:
        """The picture behind a `data:` or http(s) URL, RGB.

        Raises:
            InputError: anything else, a host that is not allowed, or a picture beyond the limits.
        """
        kind = kind_of(url)
        if kind == "data":
            return load_image(url, max_pixels=self.max_pixels, max_bytes=self.max_bytes, formats=FORMATS)
        if kind == "path" or not url.strip().lower().startswith(("http://", "https://")):
            raise InputError(
                f"image_url '{url[:80]}' is neither a data: nor an http(s) URL. Send the picture itself: "
                "data:image/png;base64,<payload>."
            )
        if not self.hosts:
            raise InputError(
                f"image_url '{url[:80]}': this server does not fetch pictures. Send the picture itself, as "
                "data:image/png;base64,<payload>.",
                hint="Or start the server with --allow_images_from HOST.",
            )
        return load_image(
            url, max_pixels=self.max_pixels, max_bytes=self.max_bytes, timeout=self.timeout, allowed_hosts=self.hosts,
            formats=FORMATS,
        )  # fmt: skip
