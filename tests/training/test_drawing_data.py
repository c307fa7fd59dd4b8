"""What painters are trained on: images with texts, sizes, latents that are kept, batches with their noise, the loss."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import each_folder, tensors
from painter_golden import sat_folder

from sat_models.errors import ConfigError, InputError, ZooError
from sat_models.models.cogview3.config import CogView3PlusConfig
from sat_models.sampling.schedule import shares, stretched
from sat_models.training.activations import measure_pass
from sat_models.training.batches import batches, evaluation_batches
from sat_models.training.drawing.captions import read_captions, text_of
from sat_models.training.drawing.data import Item, LatentDataset, LatentInputs
from sat_models.training.drawing.frames import Frame, buckets, frame_of
from sat_models.training.drawing.latents import LatentCache
from sat_models.training.drawing.loss import VPrediction
from sat_models.training.engine import recompute
from sat_models.training.records import Problem
from sat_models.training.settings import FinetuneSettings
from sat_models.training.tasks import task_of
from sat_models.training.trainable import apply_plan, plan_of
from sat_models.zoo import load_pretrained

CONFIG = CogView3PlusConfig(num_layers=1, hidden_size=8, num_attention_heads=2)


def image(file: Path, size: tuple[int, int] = (40, 30), color: str = "red") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(file)
    return file


def test_a_folder_with_texts_and_entries_of_a_file_give_the_same(tmp_path: Path) -> None:
    for number in range(2):
        image(tmp_path / "a" / f"{number}.png")
        (tmp_path / "a" / f"{number}.txt").write_text(f"  Circle\n{number}. ")
        image(tmp_path / "b" / "images" / f"{number}.png")
        (tmp_path / "b" / "labels").mkdir(exist_ok=True)
        (tmp_path / "b" / "labels" / f"{number}.txt").write_text(f"Circle {number}.")
    lines = [{"image": "0.png", "text": "Circle 0."}, {"file_name": "1.png", "caption": "Circle 1."}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for place, root in ((tmp_path / "a", None), (tmp_path / "b", None), (tmp_path / "c.jsonl", tmp_path / "a")):
        records = read_captions(place, image_root=root)
        assert [text_of(record) for record in records] == ["Circle 0.", "Circle 1."]
        assert [record.images[0].name for record in records] == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"image": "lost.png", "text": "A circle."}, "lost.png' is not there"),
        ({"image": "there.png", "text": " \n"}, "the text of .*there.png is empty"),
        ({"image": "there.png"}, r"0 text\(s\)"),
        ({"text": "A circle."}, r"0 image\(s\)"),
        ({"image": "there.png", "text": "A", "caption": "B"}, r"2 text\(s\)"),
        ({"image": "there.png", "text": 3}, "must be text"),
        ({"image": "there.png", "text": "A", "mask": "m.png"}, "'mask' is"),
        (["there.png", "A"], "must be an object"),
    ],
)
def test_a_bad_entry_is_named_with_its_line(tmp_path: Path, entry: object, said: str) -> None:
    image(tmp_path / "there.png")
    (tmp_path / "data.jsonl").write_text("\n" + json.dumps(entry))
    with pytest.raises(InputError, match=said) as raised:
        read_captions(tmp_path / "data.jsonl")
    assert "data.jsonl:2" in str(raised.value)


def test_an_image_without_a_text_is_named(tmp_path: Path) -> None:
    problems: list[Problem] = []
    image(tmp_path / "0.png")
    image(tmp_path / "1.png")
    (tmp_path / "1.txt").write_text("\n")
    assert read_captions(tmp_path, on_problem=problems.append) == []
    assert "0.txt" in problems[0].message and problems[1].kind == "empty"
    with pytest.raises(InputError, match="do not exist"):
        read_captions(tmp_path / "nowhere")


def test_images_go_into_the_bucket_of_their_shape(tmp_path: Path) -> None:
    sizes = buckets(CONFIG, (1024, 1024))
    assert all(w % 32 == 0 and h % 32 == 0 and min(w, h) >= 512 and w * h <= 2**21 for w, h in sizes)
    assert len(set(sizes)) == len(sizes) > 10 and buckets(CONFIG, (1024, 768), one=True) == [(1024, 768)]
    assert frame_of((2000, 2000), sizes).size == (1024, 1024)
    wide, tall = frame_of((3000, 1500), sizes), frame_of((1500, 3000), sizes)
    assert wide.size == tall.size[::-1] and wide.size[0] > 1.8 * wide.size[1]
    frame = Frame((300, 100), (192, 64), (64, 64))
    told = {"original_size": (100, 300), "crop": (0, 64), "target_size": (64, 64)}
    assert frame.conditions() == told and not frame.enlarged
    striped = Image.new("RGB", (300, 100), "black")
    striped.paste("white", (100, 0, 200, 100))
    striped.save(tmp_path / "striped.png")
    pixels = frame.pixels(tmp_path / "striped.png")
    assert pixels.shape == (3, 64, 64) and pixels[:, :, 4:-4].min() > 0.9, "the middle third is cut out"
    with pytest.raises(InputError, match="multiples of 32"):
        buckets(CONFIG, (1000, 1024))


def dataset(count: int = 6, **options: float) -> LatentDataset:
    """Items of two shapes."""

    def item(number: int) -> Item:
        shape = (8, 4, 4) if number % 3 else (8, 2, 8)
        moments, text = torch.full(shape, float(number)), torch.full((3, 5), float(number) + 1)
        return Item(f"data:{number}", shape, 19, lambda: (moments, text), {"crop": (number, 0)})

    return LatentDataset([item(number) for number in range(count)], **{"scale": 0.5, "seed": 1, **options})


def test_batches_are_of_one_shape_and_hang_on_seed_and_step_alone() -> None:
    data = dataset()
    straight = list(itertools.islice(batches(data, batch_size=2), 12))
    resumed = list(itertools.islice(batches(data, batch_size=2, start_step=5, workers=2), 7))
    for batch, again in zip(straight[5:], resumed, strict=True):
        assert batch.indices == again.indices and torch.equal(batch.inputs.latents, again.inputs.latents)
        assert torch.equal(batch.inputs.noise, again.inputs.noise)
        assert torch.equal(batch.inputs.timestep, again.inputs.timestep)
    assert {len({data.kinds[i] for i in batch.indices}) for batch in straight} == {1}
    assert sorted(i for batch in straight[:3] for i in batch.indices) == list(range(6)), "an epoch"
    noises = torch.cat([batch.inputs.noise.flatten() for batch in straight])
    assert len(noises.unique()) == len(noises), "no noise comes twice"
    assert not torch.equal(dataset(seed=2).collate([data.take(1)] * 2, place(0, 1)).noise, straight[0].inputs.noise)


def place(*rows: int) -> object:
    from sat_models.training.samples import Place

    return Place(0, rows)


def test_two_ranks_draw_what_one_draws_with_twice_the_batch() -> None:
    data = dataset(text_dropout=0.5)
    (whole,) = itertools.islice(batches(data, batch_size=4), 1)
    halves = [next(batches(data, batch_size=2, rank=rank, world=2)) for rank in (0, 1)]
    for name in ("latents", "noise", "timestep", "text"):
        own = [getattr(batch.inputs, name) for batch in halves]
        together = torch.stack(own, dim=1).flatten(0, 1)
        torch.testing.assert_close(together, getattr(whole.inputs, name), atol=0, rtol=0)


def test_latents_are_drawn_from_their_distribution_and_texts_are_dropped() -> None:
    moments = torch.cat((torch.full((4, 64, 64), 3.0), torch.full((4, 64, 64), 2 * torch.tensor(0.2).log())))
    item = Item("data:1", 0, 1, lambda: (moments, torch.ones(2, 2)))
    data = LatentDataset([item], scale=0.5, seed=0, text_dropout=0.25)
    made = [next(batches(data, batch_size=50, start_step=step)).inputs for step in range(4)]
    latents, times = (torch.cat([getattr(one, name) for one in made]) for name in ("latents", "timestep"))
    assert abs(latents.mean() - 1.5) < 1e-3 and abs(latents.std() - 0.1) < 1e-3
    assert times.min() >= 0 and times.max() <= 999 and abs(times.mean() - 500) < 60 and len(times.unique()) > 150
    dropped = 1 - torch.cat([one.text for one in made]).amax((1, 2)).mean()
    assert 0.15 < dropped < 0.35


def test_an_evaluation_sees_each_image_once_and_draws_the_same_each_time() -> None:
    data = dataset()
    ranks = [list(evaluation_batches(data, batch_size=3, rank=rank, world=2)) for rank in (0, 1)]
    counted = [i for own in ranks for b in own for i, w in zip(b.indices, b.inputs.weights, strict=True) if w]
    assert sorted(counted) == list(range(6)) and len(ranks[0]) == len(ranks[1])
    by_number = {i: n for own in ranks for b in own for i, n in zip(b.indices, b.inputs.noise, strict=True)}
    for batch in evaluation_batches(data, batch_size=1):
        assert torch.equal(batch.inputs.noise[0], by_number[batch.indices[0]]), "whatever the processes"


@each_folder("cogview3-plus")
def test_the_loss_is_the_originals(folder: Path, tmp_path: Path) -> None:
    """SAT's: the clean latents that the model sees, their squared error divided by 1 - a²."""
    painter, golden = load_pretrained(sat_folder(folder, tmp_path), device="cpu", dtype="float32"), tensors(folder)
    case = {name: golden[f"case1.{name}"] for name in ("latents", "text", "original_size", "crop", "target_size")}
    latents, text = case.pop("latents"), case.pop("text")
    timestep = torch.tensor([999.0, 20.0])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    inputs = LatentInputs(latents, noise, timestep, text, case, torch.tensor([1.0, 1.0]))
    made = VPrediction(painter.config.snr_shift)(painter.model, inputs)
    kept = stretched(shares(painter.config.snr_shift))[timestep.long()].view(-1, 1, 1, 1)
    noised = latents * kept + noise * (1 - kept**2) ** 0.5
    v = painter.model(latents=noised.float(), timestep=timestep, text=text, **case)
    clean = kept * noised - (1 - kept**2) ** 0.5 * v
    wanted = ((clean - latents) ** 2 / (1 - kept**2)).mean((1, 2, 3))
    assert made.count == 2
    torch.testing.assert_close(made.total.double(), wanted.sum(), rtol=1e-4, atol=0)
    one = VPrediction(painter.config.snr_shift)(painter.model, inputs_with(inputs, torch.tensor([0.0, 1.0])))
    torch.testing.assert_close(one.total.double(), wanted[1], rtol=1e-4, atol=0)


def inputs_with(inputs: LatentInputs, weights: Tensor) -> LatentInputs:
    return LatentInputs(**{**vars(inputs), "weights": weights})


class Codec:
    """Gives each image its colour."""

    def __init__(self, value: float = 1.0) -> None:
        self.value, self.asked = value, 0

    def moments(self, pixels: Tensor) -> Tensor:
        self.asked += 1
        return pixels[:, :2, ::8, ::8] * self.value


class Words:
    """Gives each text its length."""

    asked = 0

    def encode(self, prompts: list[str]) -> Tensor:
        self.asked += 1
        return torch.tensor([[[float(len(prompts[0]))]]])

    def cut(self, prompt: str) -> str:
        return ""


def test_what_was_encoded_is_not_encoded_again(tmp_path: Path) -> None:
    frame, codec, words = frame_of((40, 30), [(32, 32)]), Codec(), Words()
    file = image(tmp_path / "0.png")
    cache = LatentCache(tmp_path / "cache", {"dtype": "torch.float32"})
    for digest in ("a", "a", "b"):  # "b": an image of the same name with another content
        cache.add_images({(file, frame): digest}, lambda: codec, torch.float32)
        cache.add_texts(["red", "red"], lambda: words, torch.float32)
    assert (codec.asked, words.asked) == (2, 1)
    assert cache.read(cache.image_file("a", frame)).shape == (2, 4, 4)
    again = LatentCache(tmp_path / "cache", {"dtype": "torch.float32"})
    assert again.read(again.text_file("red")).item() == 3.0
    again.text_file("red").write_bytes(b"half")
    with pytest.raises(InputError, match="remove it, and the next start makes it anew"):
        again.read(again.text_file("red"))


def test_a_cache_of_other_settings_is_refused(tmp_path: Path) -> None:
    LatentCache(tmp_path, {"encoders": "e", "dtype": "torch.float32"})
    with pytest.raises(ConfigError, match=r"dtype = torch\.float32, but this run has torch.bfloat16: name another"):
        LatentCache(tmp_path, {"encoders": "e", "dtype": "torch.bfloat16"})


def test_latents_that_are_no_numbers_are_named_with_their_dtype(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path / "cache", {})
    file, frame = image(tmp_path / "0.png"), frame_of((40, 30), [(32, 32)])
    with pytest.raises(InputError, match=r"0\.png are no numbers: the encoder ran in torch.bfloat16"):
        cache.add_images({(file, frame): "a"}, lambda: Codec(float("nan")), torch.bfloat16)
    assert list((tmp_path / "cache" / "images").iterdir()) == []


@each_folder("cogview3-plus")
def test_settings_that_do_not_fit_a_painter_are_refused(folder: Path, tmp_path: Path) -> None:
    place = sat_folder(folder, tmp_path)
    image(tmp_path / "data" / "0.png")
    (tmp_path / "data" / "0.txt").write_text("A circle.")
    for settings, said in (
        ({"pack": True}, "--pack is for models for dialogue, but"),
        ({"version": "chat"}, "--version is for models for dialogue"),
        ({"image_size": (100, 128)}, "the size 100x128 cannot be drawn"),
        ({"image_size": (1, 2, 3)}, "it takes width and height, or one side"),
        ({"best_by": "exact_match"}, "a painter has the loss alone"),
    ):
        given = {"from_pretrained": str(place), "train_data": (str(tmp_path / "data"),), "save_path": "s"}
        with pytest.raises(ZooError, match=said):
            task_of(FinetuneSettings(**given, **settings))
    with pytest.raises(ConfigError, match="--text_dropout is for models for drawing, but cogvlm-tiny holds a"):
        task_of(FinetuneSettings(from_pretrained="cogvlm-tiny", train_data=("d",), save_path="s", text_dropout=0.5))


@each_folder("cogview3-plus")
@pytest.mark.parametrize("again", [False, True])
def test_the_estimate_counts_what_a_pass_keeps(folder: Path, tmp_path: Path, again: bool) -> None:
    place, data = sat_folder(folder, tmp_path), tmp_path / "data"
    image(data / "0.png", (128, 128))
    (data / "0.txt").write_text("A circle.")
    task = task_of(
        FinetuneSettings(
            from_pretrained=str(place), train_data=(str(data),), save_path="s", image_size=(128,), batch_size=2,
            lora_rank=4, eval_interval=0,
        )
    )  # fmt: skip
    model = load_pretrained(place, device="cpu", dtype="float32").model
    apply_plan(model, plan_of("attention", 4))
    counted = measure_pass(model, task.probe(), dtype=torch.float32, checkpoint_language=again)
    recompute(model.train(), language=again, vision=False)
    own = {x.untyped_storage().data_ptr() for x in [*model.parameters(), *model.buffers()]}
    held: dict[int, Tensor] = {}

    def hold(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    shape, words = (2, 4, 16, 16), torch.zeros(2, task.config.text_length, task.config.text_hidden_size)
    inputs = LatentInputs(torch.ones(shape), torch.ones(shape), torch.ones(2), words, {}, torch.ones(2))
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        loss = task.objective(model, inputs)
    really = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    assert counted.kept == pytest.approx(really, rel=0.05) and loss.total.requires_grad
    assert (counted.layer > 0) == again
