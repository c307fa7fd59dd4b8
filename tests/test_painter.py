"""A painter through the front door: trajectories, text, images, residency, and what is refused before work begins."""

from __future__ import annotations

import shutil
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from golden_set import each_folder, reference, tensors
from painter_golden import pipeline, sat_folder

from sat_models.checkpoint import painter_parts
from sat_models.errors import CheckpointError, ConfigError, InputError, MissingPackageError, UnknownArgumentError
from sat_models.zoo import Painter, load_pretrained
from sat_models.zoo import painter as zoo_painter
from sat_models.zoo.painter import noise

GOLDEN = Path(__file__).parent / "golden" / "cogview3-plus-mini"
SIZE = (96, 64)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sat_folder(GOLDEN, tmp_path_factory.mktemp("painter"))


@pytest.fixture(scope="module")
def painter(place: Path) -> Painter:
    return load_pretrained(place, device="cpu", dtype="float32", keep="all")


def levels(image: Image.Image) -> numpy.ndarray:
    return numpy.asarray(image).astype(int)


def same(first: Image.Image, second: Image.Image) -> bool:
    """But for one level, where a rounding falls otherwise."""
    return first.size == second.size and abs(levels(first) - levels(second)).max() <= 1


@pytest.mark.parametrize("sampler", ["sat", "diffusers"])
@each_folder("cogview3-plus")
def test_trajectories_are_the_originals(folder: Path, sampler: str, tmp_path: Path) -> None:
    painter, golden = load_pretrained(sat_folder(folder, tmp_path), device="cpu", dtype="float32"), tensors(folder)
    for number, case in enumerate(reference(folder)["denoise"]):
        key, sizes = f"denoise{number}", torch.tensor([case["target_size"]])
        states = painter.denoise(
            golden[f"{key}.start"], golden[f"{key}.text"], steps=case["steps"], guidance=case["scale"],
            sampler=sampler, original_size=sizes, crop=torch.zeros(1, 2), target_size=sizes,
        )  # fmt: skip
        torch.testing.assert_close(torch.stack(list(states)), golden[f"{key}.{sampler}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["sat", "diffusers"])
@each_folder("cogview3-plus")
def test_text_and_image_codec_are_the_originals(folder: Path, form: str, tmp_path: Path) -> None:
    found = sat_folder(folder, tmp_path) if form == "sat" else pipeline(folder, tmp_path)
    golden, meta = tensors(folder), reference(folder)
    painter = load_pretrained(found, device="cpu", dtype="float32")
    step, config = painter.checkpoint.step_folder, painter.config
    how = {"device": torch.device("cpu"), "dtype": torch.float32}
    encoder = painter_parts.open_text_encoder(step, config, **how)
    length = meta["sizes"]["text_length"]
    assert [encoder.words.ids(text, length) for text in meta["prompts"]] == golden["text.ids"].tolist()
    encoder._length = length  # a transformer folder of diffusers does not say it
    torch.testing.assert_close(encoder.encode(meta["prompts"]), golden["text.embeds"], atol=2e-6, rtol=0)
    codec = painter_parts.open_codec(step, config, **how)
    torch.testing.assert_close(codec.pixels(golden["vae.latents"]), golden["vae.decoded_sat"], atol=2e-5, rtol=0)
    torch.testing.assert_close(codec.moments(golden["vae.image"]), golden["vae.moments_sat"], atol=2e-5, rtol=0)


@each_folder("cogview3-plus")
def test_the_pipelines_image(folder: Path, tmp_path: Path) -> None:
    golden, meta = tensors(folder), reference(folder)
    painter, case = load_pretrained(pipeline(folder, tmp_path), device="cpu", dtype="float32"), meta["denoise"][0]
    options = {"steps": case["steps"], "guidance": case["scale"], "sampler": "diffusers"}
    *_, last = painter.denoise(golden["denoise0.start"], golden["denoise0.text"], **options)
    codec = painter_parts.open_codec(
        painter.checkpoint.step_folder, painter.config, device=torch.device("cpu"), dtype=torch.float32
    )
    image = (codec.pixels(last) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(image, golden["pipeline.image_diffusers"], atol=1e-4, rtol=0)


def test_an_image_has_its_size_and_its_seed(painter: Painter) -> None:
    first = painter.draw("A red circle", size=SIZE, steps=3, seed=7)
    assert first.size == SIZE and first.mode == "RGB"
    assert levels(first).std() > 0
    assert painter.draw("A red circle", size=SIZE, steps=3, seed=7).tobytes() == first.tobytes()
    for other in ({"seed": 8}, {"guidance": 1}, {"sampler": "diffusers"}, {"steps": 4}):
        assert not same(painter.draw("A red circle", **{"size": SIZE, "steps": 3, "seed": 7, **other}), first), other
    assert not same(painter.draw("A blue square", size=SIZE, steps=3, seed=7), first)
    assert painter.draw("A red circle", steps=1).size == painter.config.usual_size


def test_several_images_are_those_of_single_calls(painter: Painter) -> None:
    prompts = ["A red circle", "A blue square", "A red circle"]
    alone = [painter.draw(prompt, size=SIZE, steps=3, seed=5 + n) for n, prompt in enumerate(prompts)]
    for rows in (1, 2, 4):
        together = painter.draw(prompts, size=SIZE, steps=3, seed=5, max_rows=rows)
        assert all(map(same, together, alone))
    assert not same(alone[0], alone[2])


def test_step_by_step_with_previews(painter: Painter) -> None:
    states = painter.steps(["A red circle", "A blue square"], size=SIZE, steps=3, seed=5)
    seen = []
    for state in states:
        seen.append((state.index, state.of))
        assert [image.size for image in state.preview()] == [SIZE, SIZE]
    assert seen == [(1, 3), (2, 3), (3, 3)] and state.seeds == (5, 6)
    assert all(map(same, state.images(), painter.draw(["A red circle", "A blue square"], size=SIZE, steps=3, seed=5)))


def test_a_preview_is_small(painter: Painter) -> None:
    state = next(painter.steps("A red circle", size=(256, 128), steps=2, seed=1))
    large = replace(state, sample=replace(state.sample, clean=torch.zeros(1, 4, 80, 160)))
    assert large.preview()[0].size == (256, 128)


def test_who_stops_listening_cancels(place: Path) -> None:
    painter = load_pretrained(place, device="cpu", dtype="float32", keep="none")
    states = painter.steps("A red circle", size=SIZE, steps=100, seed=5)
    next(states).preview()
    assert painter._model.here and painter._codec.here
    states.close()
    assert not painter._model.here and not painter._codec.here


@pytest.mark.parametrize(
    ("keep", "left"), [("all", (True, True, True)), ("model", (True, False, False)), ("none", (False, False, False))]
)
def test_parts_are_in_memory_when_they_are_needed(
    place: Path, keep: str, left: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = load_pretrained(place, device="cpu", dtype="float32", keep=keep)
    here = lambda: (painter._model.here, painter._text_encoder.here, painter._codec.here)  # noqa: E731
    assert here() == (False, False, False), "nothing is read before it is needed"
    seen: list[tuple[bool, ...]] = []
    original = painter._samples
    monkeypatch.setattr(painter, "_samples", lambda *given: (seen.append(here()), original(*given))[1])
    painter.draw("A red circle", size=SIZE, steps=1, seed=1)
    assert seen == [(False, keep == "all", False)] and here() == left


def test_what_is_released_is_freed(place: Path) -> None:
    """Not some time later, when the next part is in memory, too."""
    painter = load_pretrained(place, device="cpu", dtype="float32", keep="none")
    opened: dict[str, weakref.ref[Any]] = {}

    def noted(name: str, part: Any) -> Callable[[], Any]:
        original = part._open

        def open_it() -> Any:
            value = original()
            opened[name] = weakref.ref(value if isinstance(value, torch.nn.Module) else value.model)
            return value

        return open_it

    for name in ("_text_encoder", "_model", "_codec"):
        part = getattr(painter, name)
        part._open = noted(name, part)
    states = painter.steps("A red circle", size=SIZE, steps=3, seed=5)
    next(states)
    assert opened["_text_encoder"]() is None and opened["_model"]() is not None
    next(states)
    states.close()
    assert opened["_model"]() is None
    painter.draw("A red circle", size=SIZE, steps=1, seed=5)
    assert all(reference() is None for reference in opened.values()) and len(opened) == 3


def test_a_prompt_is_encoded_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several prompts in one go; the same one again not at all, as long as not too many came between."""
    monkeypatch.setattr(zoo_painter, "REMEMBERED", 2)
    painter = load_pretrained(place, device="cpu", dtype="float32", keep="none")
    opened: list[tuple[str, ...]] = []
    encoded = painter._encoded
    monkeypatch.setattr(painter, "_encoded", lambda prompts: opened.append(tuple(prompts)) or encoded(prompts))
    how = {"size": SIZE, "steps": 1, "seed": 5}
    first, _, third = painter.draw(["a", "b", "c"], max_rows=1, **how)
    assert opened == [("a", "b"), ("c",)]
    assert same(painter.draw("c", **{**how, "seed": 7}), third) and len(opened) == 2
    assert same(painter.draw("a", **how), first) and opened[2:] == [("a",)], "two came between"


def test_a_prompt_that_is_cut_is_said(painter: Painter, caplog: pytest.LogCaptureFixture) -> None:
    painter.draw("A red circle", size=SIZE, steps=1, seed=1)
    assert caplog.text == ""
    painter.draw("A red circle and a blue square and a green triangle", size=SIZE, steps=1, seed=1)
    assert "tokens and the model reads 16: '" in caplog.text and "triangle' is left out" in caplog.text
    assert len(caplog.records) == 1
    prompts = ["A red circle", "A red circle and a blue square and a green triangle"]
    first, second = next(painter.steps(prompts, size=SIZE, steps=1, seed=1)).cut
    assert first == "" and second.endswith("triangle")


def test_what_a_call_would_do(painter: Painter) -> None:
    chosen = painter.check("A red circle", steps=3)
    usual = painter.config
    assert (chosen.steps, chosen.size, chosen.guidance) == (3, usual.usual_size, usual.guidance)
    assert isinstance(chosen.seed, int) and painter.check("A red circle", seed=7).seed == 7
    for given, message in (({"prompt": ""}, "say what is to be seen"), ({"size": (100, 64)}, "cannot be drawn")):
        with pytest.raises(InputError, match=message):
            painter.check(**{"prompt": "A red circle", **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": ""}, "say what is to be seen"),
        ({"prompt": ["a", " "]}, "say what is to be seen"),
        ({"size": (100, 64)}, "100x64 cannot be drawn"),
        ({"size": (64, 640)}, "nearest sides are 64x256"),
        ({"size": 64}, "the size is 64; it must be two whole numbers"),
        ({"steps": 0}, "steps is 0"),
        ({"guidance": -2}, "guidance is -2"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"sampler": "x"}, "sampler is 'x'"),
        ({"max_rows": 0}, "max_rows is 0"),
    ],
)
def test_what_is_refused_before_work_begins(painter: Painter, given: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ConfigError), match=message):
        painter.draw(**{"prompt": "A red circle", "size": SIZE, "steps": 1, **given})


def test_an_argument_that_there_is_not(painter: Painter) -> None:
    with pytest.raises(
        UnknownArgumentError, match=r"draw was given 'step', which it does not take. Did you mean steps"
    ):
        painter.draw("A red circle", step=3)


def test_the_transformer_alone_computes_and_names_what_drawing_needs(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "diffusers" / "transformer", tmp_path / "alone"))
    painter = load_pretrained(folder, device="cpu", dtype="float32")
    golden = tensors(GOLDEN)
    assert next(painter.denoise(golden["denoise0.start"], golden["denoise0.text"], steps=2)).isfinite().all()
    with pytest.raises(
        CheckpointError, match=r"text encoder is missing: fetch https://huggingface.co/google/t5-v1_1-xxl"
    ):
        painter.draw("A red circle", size=SIZE)


def test_a_missing_decoder_is_named_before_work(place: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(place, tmp_path / "copy"))
    shutil.rmtree(copy / "vae")
    painter = load_pretrained(copy, device="cpu", dtype="float32")
    with pytest.raises(CheckpointError, match=r"image decoder is missing: put imagekl_ch16.pt"):
        painter.steps("A red circle", size=SIZE)
    assert not painter._text_encoder.here


@pytest.mark.parametrize("package", ["transformers", "diffusers"])
def test_a_missing_package_names_its_extra(painter: Painter, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"needs the package '{package}'.*cogvlm-sat-zoo\[draw\]"):
        painter.draw("A red circle", size=SIZE)


def test_text_encoders_of_all_painters_may_lie_in_one_place(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(place, tmp_path / "models" / "copy"))
    (copy / "t5-v1_1-xxl").rename(tmp_path / "t5-v1_1-xxl")
    monkeypatch.setenv("SAT_HOME", str(tmp_path))
    assert load_pretrained(copy, device="cpu").draw("A red circle", size=SIZE, steps=1, seed=1).size == SIZE


def test_in_bf16_on_a_cpu(place: Path, painter: Painter) -> None:
    half = load_pretrained(place, device="cpu", dtype="bfloat16").draw("A red circle", size=SIZE, steps=4, seed=3)
    whole = painter.draw("A red circle", size=SIZE, steps=4, seed=3)
    assert abs(levels(half) - levels(whole)).mean() < 8


def test_noise_is_that_of_its_seed() -> None:
    assert noise((4, 8, 8), 3).equal(noise((4, 8, 8), 3)) and not noise((4, 8, 8), 3).equal(noise((4, 8, 8), 4))


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.05), (4, 0.5)])
def test_a_text_encoder_of_few_bits(place: Path, painter: Painter, bits: int, limit: float) -> None:
    small = load_pretrained(place, device="cpu", dtype="float32", quant_text=bits, keep="all")
    text, wanted = small.encode(["A red circle"]), painter.encode(["A red circle"])
    difference = (text - wanted).abs().max() / wanted.std()
    assert 0 < difference < limit
    model, whole = small._text_encoder.get().model, painter._text_encoder.get().model
    kinds = {str(weight.dtype) for name, weight in model.named_parameters() if ".layer." in name and "norm" not in name}
    assert {"torch.int8"} <= kinds and (bits == 8 or "torch.uint8" in kinds)
    assert sum(w.nbytes for w in model.parameters()) < 0.6 * sum(w.nbytes for w in whole.parameters())
    assert small.draw("A red circle", size=SIZE, steps=1, seed=1).size == SIZE


def test_bits_of_a_text_encoder_that_there_are_not(place: Path) -> None:
    with pytest.raises(ConfigError, match="quant_text is 5; allowed: 8 or 4"):
        load_pretrained(place, device="cpu", quant_text=5)
    with pytest.raises(ConfigError, match="quant_text: for models that draw"):
        load_pretrained("cogvlm-tiny", device="cpu", quant_text=8)
