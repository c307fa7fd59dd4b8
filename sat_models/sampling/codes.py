"""Image codes from CogView2: written one after the other, made three times as many on a side, made anew in passes.

Source: github.com/THUDM/CogView2 at d92dbad, `coglm_strategy.py` and `sr_pipeline/`.
Legend: B images, T text tokens, R rows of logits, V codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mixins.kv_cache import kv_cache
from sat_models.errors import InputError
from sat_models.models.common.image_tokens import ImageTokenModel

_PASSES = (
    (-1, 0, 1, 2, 3, 4),
    (0, -1, 2, -1, -2, 5),
    (1, -2, 3, 4, 5, 6),
    (2, 3, 4, 5, -1, 1),
    (3, -1, -2, 0, -1, 2),
    (4, 5, 6, 1, 3, -2),
)
"""LoPAR (arXiv 2204.14217, section 3.3): pass n makes those cells of each 6 x 6 anew whose number is at least n."""
_BEST_OF_PASS = (40, 40, 40, 20, 20, 10)
PASSES = len(_BEST_OF_PASS)
"""Of `refine`."""


@dataclass(frozen=True, kw_only=True)
class CodeChoice:
    """How a code is drawn from logits.

    Attributes:
        temperature: 0 takes the likeliest code.
        best: the likeliest clusters, or codes where there are no clusters, that may be drawn; 0: all.
        clusters: [V], the cluster of each code (the originals' `cluster_label.npy`): a cluster is drawn first, by the
            sum of its codes, then a code of it.
        cluster_temperature: of the second draw.
    """

    temperature: float = 1.15
    best: int = 16
    clusters: Tensor | None = None
    cluster_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.cluster_temperature <= 0 or self.best < 0:
            raise InputError(
                f"temperature is {self.temperature}, cluster_temperature {self.cluster_temperature}, best {self.best}; "
                "the second must be above 0, the others at least 0"
            )

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """[R, V] -> [R]."""
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits.float() / self.temperature
        if self.clusters is None:
            if self.best:
                least = logits.topk(min(self.best, logits.shape[-1])).values[:, -1:]
                logits = logits.masked_fill(logits < least, float("-inf"))
            return _drawn(logits.softmax(-1), generator)
        labels = self.clusters.to(logits.device)
        count = int(labels.max()) + 1
        sums = logits.new_zeros(len(logits), count).index_add_(1, labels, logits.softmax(-1))
        best = sums.topk(min(self.best or count, count))
        chosen = best.indices.gather(1, _drawn(best.values, generator).unsqueeze(1))
        logits = logits.masked_fill(labels != chosen, float("-inf"))
        return _drawn((logits / self.cluster_temperature).softmax(-1), generator)


def _drawn(weights: Tensor, generator: torch.Generator) -> Tensor:
    """On the CPU, so that a seed means the same on every device."""
    return torch.multinomial(weights.cpu(), 1, generator=generator).squeeze(1).to(weights.device)


@torch.inference_mode()
def write_codes(
    model: ImageTokenModel,
    text: Tensor,
    *,
    count: int = 400,
    text_weight: float = 1.4,
    choice: CodeChoice | None = None,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """With a CogLM: the codes of images one after the other, [B] each; who stops listening stops.

    Args:
        text: [B, T], ids of text that ends in `<start_of_image>`.
        count: of codes.
        text_weight: see the model.
    """
    choice, (rows, length) = choice or CodeChoice(), text.shape
    positions = torch.arange(length, device=text.device)
    positions[-1] = model.config.image_start
    told = {"text": length - 1, "text_weight": text_weight}
    with kv_cache(model, length + count) as cache:
        ids = text
        for _ in range(count):
            logits = model(input_ids=ids, position_ids=positions.unsqueeze(0), **told)[0][:, -1]
            cache.advance(ids.shape[1])
            codes = choice.draw(logits, generator)
            yield codes
            ids, positions = codes.view(rows, 1), positions[-1:] + 1


@torch.inference_mode()
def enlarge(
    model: ImageTokenModel, text: Tensor, small: Tensor, *, start: int, choice: CodeChoice, generator: torch.Generator
) -> Tensor:
    """With a direct super-resolution model: [B, small cells] -> [B, large cells], in one forward.

    Args:
        text: [B, T] without `<start_of_image>`.
        start: id of `<start_of_image>`.

    Raises:
        InputError: a text that is too long, or another number of codes.
    """
    config = model.config
    if small.shape[1] != config.small_cells:
        raise InputError(f"{small.shape[1]} codes of a small image were given; this model takes {config.small_cells}")
    padded, places = _padded(text, config.layout[0])
    ids = torch.cat((padded, small, small.new_full((len(small), config.cells), start)), dim=1)
    behind = model.config.max_sequence_length // 2 + 1  # where the small image's positions begin
    positions = torch.cat((places, torch.arange(behind, behind + config.small_cells), _large(model))).to(ids.device)
    logits = model(input_ids=ids, position_ids=positions.unsqueeze(0))[0][:, config.first :]
    return choice.draw(logits.flatten(0, 1), generator).view(len(ids), -1)


@torch.inference_mode()
def refine(
    model: ImageTokenModel, text: Tensor, large: Tensor, *, start: int, temperature: float = 1.0,
    generator: torch.Generator,
) -> Iterator[Tensor]:  # fmt: skip
    """With an iterative super-resolution model: the codes [B, large cells] after each pass.

    Args:
        text: [B, T] without `<start_of_image>`; what is too long is cut, as in the original.
        start: id of `<start_of_image>`.

    Raises:
        InputError: another number of codes.
    """
    config = model.config
    if large.shape[1] != config.cells:
        raise InputError(f"{large.shape[1]} codes of a large image were given; this model takes {config.cells}")
    padded, places = _padded(text[:, : config.layout[0]], config.layout[0])
    positions = torch.cat((places, _large(model))).unsqueeze(0).to(large.device)
    side = round(config.cells**0.5)
    pattern, times = torch.tensor(_PASSES), -(-side // len(_PASSES))
    numbers = pattern.repeat(times, times)[:side, :side].flatten().to(large.device)
    for number, best in enumerate(_BEST_OF_PASS, start=1):
        anew = numbers >= number
        ids = torch.cat((padded, large.masked_fill(anew, start)), dim=1)
        logits = model(input_ids=ids, position_ids=positions)[0][:, config.first :]
        drawn = CodeChoice(temperature=temperature, best=best).draw(logits[:, anew].flatten(0, 1), generator)
        large = large.clone()
        large[:, anew] = drawn.view(len(large), -1)
        yield large


def _padded(text: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Text [B, T] with zeros before it, and the positions of both."""
    padding = length - text.shape[1]
    if padding < 0:
        raise InputError(f"the text has {text.shape[1]} tokens; this model takes {length} at most")
    places = torch.cat((torch.zeros(padding, dtype=torch.long), torch.arange(text.shape[1])))
    return torch.cat((text.new_zeros(len(text), padding), text), dim=1), places


def _large(model: ImageTokenModel) -> Tensor:
    first = model.config.max_sequence_length
    return torch.arange(first, first + model.config.cells)
