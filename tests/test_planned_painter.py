"""The bundled painter's kind: from a prompt to an image, step by step, by the contract of painters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from planned_painter import small_config, small_folder, small_model

from sat_models.config import read_json
from sat_models.errors import CheckpointError, ConfigError, InputError, UnknownArgumentError
from sat_models.models.cogview_tiny.config import CogViewTinyConfig
from sat_models.processing.plans import PlannedObject, allowed_tokens, plan_ids, read_plan, read_prompt
from sat_models.sampling.planned import write_planned
from sat_models.shapes.painter_recipe import painter_config
from sat_models.zoo import PlannedPainter, load_pretrained

PROMPT = "A red circle and a blue square."


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> PlannedPainter:
    folder = small_folder(tmp_path_factory.mktemp("painter"))
    return load_pretrained(folder, device="cpu", dtype="float32", task="drawing")


def test_the_released_sizes_are_those_of_the_world() -> None:
    file = Path(__file__).resolve().parents[1] / "configs" / "models" / "cogview-tiny.json"
    config = CogViewTinyConfig.from_dict(read_json(file))
    assert config == painter_config(num_layers=6, hidden_size=192, num_attention_heads=6)
    assert CogViewTinyConfig.from_dict(config.to_dict()) == config and config.usual_size == (96, 96)
    config.check_model_parallel(2)


def test_an_image_is_its_prompts_and_its_seeds(painter: PlannedPainter) -> None:
    first = painter.draw(PROMPT, seed=5)
    assert first.size == (96, 96) and first.mode == "RGB"
    assert np.array_equal(first, painter.draw(PROMPT, seed=5))
    assert not np.array_equal(first, painter.draw(PROMPT, seed=6))
    several = painter.draw(["Two circles.", PROMPT, PROMPT], seed=4, max_rows=2)
    assert np.array_equal(several[1], first), "whatever is drawn beside it"
    assert np.array_equal(several[2], painter.draw(PROMPT, seed=6))


def test_it_is_drawn_step_by_step_and_may_be_stopped(painter: PlannedPainter) -> None:
    states = list(painter.steps([PROMPT, "a green triangle"], seed=1))
    assert [state.index for state in states] == list(range(1, states[0].of + 1))
    assert states[0].of == painter.config.steps == painter.check(PROMPT).steps
    assert states[-1].seeds == (1, 2) and states[-1].cut == ("", "")
    grey, half, done = (states[number].preview()[0] for number in (3, 80, -1))
    assert grey.getextrema() == ((127, 127),) * 3 and grey.size == half.size == done.size == (96, 96)
    assert np.array_equal(done, painter.draw(PROMPT, seed=1)) and not np.array_equal(half, done)
    background, things = states[-1].plans()[0]
    assert background in painter.config.backgrounds and len(things) <= painter.config.most_objects
    assert states[3].plans() == []
    stopped = painter.steps(PROMPT, seed=1)
    next(stopped)
    stopped.close()
    assert "auto-regressive" not in painter.model.mixins
    assert np.array_equal(painter.draw(PROMPT, seed=1), done)


@torch.no_grad()
def test_one_by_one_is_all_at_once() -> None:
    """The cache, the prompt's length and the attention of the class: tokens and logits are those of a whole forward."""
    model = small_model().eval()
    config = model.config
    text = torch.tensor([read_prompt(config, prompt).ids for prompt in (PROMPT, "three shapes")])
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    tokens = torch.stack(list(write_planned(model, text, generators=generators, temperature=0)), dim=1)
    whole = torch.cat((text, torch.full((2, 1), config.start), tokens), dim=1)
    positions = torch.arange(whole.shape[1] - 1)[None]
    logits = model(input_ids=whole[:, :-1], position_ids=positions)[0][:, config.image_start :]
    allowed = allowed_tokens(config)
    assert torch.equal(logits.masked_fill(~allowed, float("-inf")).argmax(-1), tokens)


def test_plans_are_read_as_they_were_written() -> None:
    config = small_config()
    things = [PlannedObject("red", "circle", 4, 10, 24), PlannedObject("orange", "triangle", 40, 50, 80)]
    ids = plan_ids(config, "navy", things)
    assert len(ids) == config.plan_length and read_plan(config, ids) == ("navy", things)
    allowed = allowed_tokens(config)
    assert all(allowed[position, token] for position, token in enumerate(ids))
    assert not allowed[: config.plan_length, : config.codes].any() and not allowed[0, ids[1]]
    assert allowed[config.plan_length :].sum(1).eq(config.codes).all()


def test_what_is_not_read_is_said(painter: PlannedPainter, caplog: pytest.LogCaptureFixture) -> None:
    reading = read_prompt(painter.config, "A RED circle, and an elephant!")
    assert reading.unknown == ("elephant",) and reading.cut == ""
    assert reading.ids[:6] == read_prompt(painter.config, "a red circle , and an").ids[:6]
    long = "a red circle and " * 8
    last = list(painter.steps(long + "a tall elephant", seed=0))[-1]
    assert last.cut == ("a red circle and a red circle and a tall elephant",) and len(last.seeds) == 1
    assert "elephant" in caplog.text and "is left out" in caplog.text


@pytest.mark.parametrize(
    ("prompt", "options", "error", "said"),
    [
        ("", {}, InputError, "say what is to be seen"),
        ("Elephants!", {}, InputError, "knows no word"),
        (PROMPT, {"size": (512, 512)}, InputError, "draws 96x96"),
        (PROMPT, {"steps": 50}, ConfigError, "160 tokens"),
        (PROMPT, {"steps": 0}, ConfigError, "160 tokens"),
        (PROMPT, {"guidance": 5.0}, InputError, "has none"),
        (PROMPT, {"seed": -1}, InputError, "seed is -1"),
        (PROMPT, {"temperature": 9}, InputError, "from 0 to 2"),
        (PROMPT, {"sampler": "sat"}, UnknownArgumentError, "sampler"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    painter: PlannedPainter, prompt: str, options: dict, error: type[Exception], said: str
) -> None:
    for call in (painter.draw, painter.check, painter.steps):
        with pytest.raises(error, match=said):
            call(prompt, **options)


def test_a_config_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="image_codes"):
        CogViewTinyConfig.from_dict({**small_config().to_dict(), "levels": [8, 8]})
    with pytest.raises(ConfigError, match="max_sequence_length"):
        CogViewTinyConfig.from_dict({**small_config().to_dict(), "most_objects": 4})


def test_what_it_has_no_use_for_is_refused(tmp_path: Path) -> None:
    folder = small_folder(tmp_path)
    with pytest.raises(ConfigError, match="no text encoder"):
        load_pretrained(folder, device="cpu", quant_text=8)
    painter = load_pretrained(folder, device="cpu", dtype="bfloat16", keep="none")
    assert painter.draw(PROMPT, seed=0).size == (96, 96)
    (folder / "1" / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(CheckpointError):
        load_pretrained(folder, device="cpu")
