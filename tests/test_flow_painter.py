"""CogView4 beside diffusers' own pipeline, on a tiny random one that diffusers makes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from sat_models.checkpoint.convert import convert
from sat_models.commands.draw import main
from sat_models.errors import CheckpointError, ConfigError, InputError, MissingPackageError
from sat_models.sampling.flow import flow_steps
from sat_models.zoo import load_pretrained
from sat_models.zoo.flow_painter import FlowPainter
from sat_models.zoo.painter import noise

SIZE = (96, 64)
PROMPT, LONGER = "a red circle", "a red circle and a blue square left of a green triangle " * 2
WORDS = ["<pad>", "<unk>", "[gMASK]", "<sop>", *dict.fromkeys(LONGER.split())]


def words() -> Any:
    """A tokenizer that puts GLM-4's two tokens in front and pads at the left."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    front = [(word, WORDS.index(word)) for word in ("[gMASK]", "<sop>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[gMASK] <sop> $A", special_tokens=front)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="left", model_max_length=1024
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline as diffusers saves it."""
    from diffusers import AutoencoderKL, CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import GlmConfig, GlmModel

    torch.manual_seed(0)
    language = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    glm = GlmConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, pad_token_id=0, **language)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    plain = dict.fromkeys(("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"), False)
    codec = {"block_out_channels": (32,) * 4, "latent_channels": 4, "scaling_factor": 0.8, **blocks, **plain}
    widths = {"attention_head_dim": 16, "num_attention_heads": 2, "text_embed_dim": 32, "time_embed_dim": 16}
    sizes = {"in_channels": 4, "out_channels": 4, "condition_dim": 8, "pos_embed_max_size": 16, "sample_size": 16}
    shifts = {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75}
    pipeline = CogView4Pipeline(
        tokenizer=words(),
        text_encoder=GlmModel(glm),
        vae=AutoencoderKL(**codec),
        transformer=CogView4Transformer2DModel(num_layers=2, **widths, **sizes),
        scheduler=FlowMatchEulerDiscreteScheduler(**shifts),
    )
    folder = tmp_path_factory.mktemp("pipelines") / "cogview4"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def painter(place: Path) -> FlowPainter:
    found = load_pretrained(place, device="cpu", dtype="float32", keep="all")
    assert isinstance(found, FlowPainter)
    return found


@pytest.fixture(scope="module")
def theirs(place: Path) -> Any:
    from diffusers import CogView4Pipeline

    pipeline = CogView4Pipeline.from_pretrained(place)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("prompt", "steps", "guidance"), [(PROMPT, 4, 3.5), (LONGER, 7, 3.5), (PROMPT, 3, 1)])
def test_trajectories_and_images_are_the_pipelines(
    painter: FlowPainter, theirs: Any, prompt: str, steps: int, guidance: float
) -> None:
    start, seen = noise(painter.config.latent_shape(*SIZE), 3)[None], []

    def keep(pipe: Any, index: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"].clone())
        return values

    image = theirs(
        prompt, width=SIZE[0], height=SIZE[1], num_inference_steps=steps, guidance_scale=guidance,
        latents=start.clone(), callback_on_step_end=keep,
    ).images[0]  # fmt: skip
    states = list(painter.denoise(start, painter.encode([prompt]), steps=steps, guidance=guidance))
    torch.testing.assert_close(torch.stack(states), torch.stack(seen), atol=1e-4, rtol=0)
    drawn = painter.draw(prompt, size=SIZE, steps=steps, guidance=guidance, seed=3)
    assert drawn.size == image.size == SIZE
    assert abs(numpy.asarray(drawn).astype(int) - numpy.asarray(image).astype(int)).max() <= 1


def test_steps_are_the_schedulers(painter: FlowPainter, theirs: Any) -> None:
    for steps, tokens in ((1, 8), (5, 256), (50, 4096)):
        times = numpy.linspace(1000, 1.0, steps).astype(int).astype(numpy.float32)
        shift = 0.25 + 0.75 * (tokens / 256) ** 0.5
        theirs.scheduler.set_timesteps(timesteps=times, sigmas=times / 1000, mu=shift)
        ours = flow_steps(steps, tokens, painter.config)
        assert [step.time for step in ours] == theirs.scheduler.timesteps.tolist()
        wanted = theirs.scheduler.sigmas.tolist()
        assert [*(step.sigma for step in ours), ours[-1].after] == pytest.approx(wanted, abs=1e-6)


def test_an_image_depends_on_its_own_prompt_and_seed(painter: FlowPainter) -> None:
    prompts = [PROMPT, LONGER, PROMPT]
    together = painter.draw(prompts, size=SIZE, steps=3, seed=5)
    alone = [painter.draw(prompt, size=SIZE, steps=3, seed=5 + number) for number, prompt in enumerate(prompts)]
    assert [image.tobytes() for image in together] == [image.tobytes() for image in alone]
    assert alone[0].tobytes() != alone[2].tobytes()
    assert painter.draw(PROMPT, size=SIZE, steps=3, seed=5, guidance=1).tobytes() != alone[0].tobytes()
    assert painter.draw(PROMPT, steps=1).size == painter.config.usual_size


def test_step_by_step_with_previews_until_nobody_listens(place: Path) -> None:
    painter = load_pretrained(place, device="cpu", dtype="float32", keep="none")
    states = painter.steps([PROMPT, LONGER], size=SIZE, steps=9, seed=5)
    first = next(states)
    assert (first.index, first.of, first.seeds) == (1, 9, (5, 6))
    assert [image.size for image in first.preview()] == [SIZE, SIZE]
    assert painter._model.here and not painter._text_encoder.here
    states.close()
    assert not painter._model.here and not painter._codec.here


def test_a_prompt_that_is_cut_is_said(painter: FlowPainter, caplog: pytest.LogCaptureFixture) -> None:
    encoder = painter._text_encoder.get()
    assert encoder.length(PROMPT) == 5 and encoder.cut(PROMPT) == ""
    encoder._length = 6
    try:
        painter.draw(f"{LONGER} circle", size=SIZE, steps=1, seed=1)
        assert encoder.encode([LONGER]).shape == (1, 16, 32)
    finally:
        encoder._length = painter.config.text_length
    assert "blue square" in caplog.text and "is left out" in caplog.text


def test_a_text_encoder_of_few_bits(place: Path, painter: FlowPainter) -> None:
    small = load_pretrained(place, device="cpu", dtype="float32", quant_text=8, keep="all")
    text, wanted = small.encode([PROMPT])[0], painter.encode([PROMPT])[0]
    assert 0 < (text - wanted).abs().max() / wanted.std() < 0.1


def test_the_command_draws(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ["--from_pretrained", str(place), "--prompt", PROMPT, "--size", "96x64", "--steps", "2", "--fp32", "--json"]
    assert main([*how, "--count", "2", "--seed", "4", "--output", str(tmp_path / "many")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["size"] == [96, 64] and said["guidance"] == 3.5 and len(said["files"]) == 2
    assert [Image.open(file).size for file in said["files"]] == [SIZE, SIZE]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": " "}, "say what is to be seen"),
        ({"size": (64, 40)}, "64x40 cannot be drawn: width and height are multiples of 32 from 64 to 256"),
        ({"size": (512, 64)}, "nearest sides are 256x64"),
        ({"steps": 0}, "steps is 0"),
        ({"sampler": "sat"}, "sampler is 'sat'; allowed: diffusers"),
    ],
)
def test_what_is_refused_before_work_begins(painter: FlowPainter, given: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ConfigError), match=message):
        painter.draw(**{"prompt": PROMPT, "size": (64, 64), "steps": 1, **given})


def test_folders_that_lack_something(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAT_HOME", str(tmp_path / "none"))
    alone = Path(shutil.copytree(place / "transformer", tmp_path / "alone" / "transformer"))
    with pytest.raises(
        CheckpointError, match=r"text encoder is missing: fetch https://huggingface.co/THUDM/glm-4-9b-hf"
    ):
        load_pretrained(alone, device="cpu").draw(PROMPT, size=(64, 64))
    with pytest.raises(ConfigError, match="leave quant out"):
        load_pretrained(place, device="cpu", quant=4)
    with pytest.raises(ConfigError, match="CogView4Model is kept in diffusers' form only; there is nothing to convert"):
        convert(place, "sat", tmp_path / "sat")
    other = Path(shutil.copytree(place, tmp_path / "other"))
    file = other / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dynamic_shifting": False}))
    with pytest.raises(ConfigError, match=r"scheduler_config.json is not CogView4's: use_dynamic_shifting must"):
        load_pretrained(other, device="cpu")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingPackageError, match=r"CogView4Transformer2DModel needs .*cogvlm-sat-zoo\[draw\]"):
        load_pretrained(place, device="cpu")
