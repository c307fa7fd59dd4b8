"""Articles with images: what the model is asked in each step, and what becomes of its answers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sat_models.commands.compose import main
from sat_models.errors import ConfigError, InputError
from sat_models.generation.sampling import SamplingOptions
from sat_models.models.families import prompt_styles
from sat_models.serving.composing import as_markdown, compose

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "xcomposer2-mini"
IMAGES = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
OPTIONS = SamplingOptions(max_new_tokens=99, temperature=1.0, top_k=40, repetition_penalty=1.005)
MARK = "<ImageHere>"


class Scripted:
    """A model that answers as written, and notes what it was asked."""

    def __init__(self, *answers: str) -> None:
        self.config = SimpleNamespace(model_class="XComposer2Model")
        self.processor = SimpleNamespace(
            style=prompt_styles().get, tokenizer=SimpleNamespace(special_id={"[UNUSED_TOKEN_0]": 92397}.get)
        )
        self.answers, self.asked, self.ends = list(answers), list[Any](), frozenset[int]()

    def request(self, images: Any, query: str, history: Any, version: str, options: SamplingOptions) -> Any:
        count = len(images or ())
        assert query.count(MARK) == count, "an image for each mark"
        self.asked.append((version, query, [IMAGES.index(image) for image in images or ()], options))
        return None

    def engine(self) -> Any:
        scripted = self

        class Engine:
            end_ids = frozenset((92542, 2))

            def answer(self, request: None) -> Any:
                scripted.ends = self.end_ids
                return SimpleNamespace(text=scripted.answers.pop(0))

        return Engine()


def test_lines_places_and_choices() -> None:
    vlm = Scripted("A title\n\n First.\nSecond.\n", "<Seg0>, <Seg2> and <Seg9>", "B.", " A")
    found = compose(vlm, "Colours", IMAGES, options=OPTIONS)
    assert [(section.text, section.image) for section in found] == [("A title", 1), ("First.", None), ("Second.", 0)]
    (article, where, first, second) = vlm.asked
    assert article == ("xcomposer2_article", f"{MARK} {MARK} {MARK}Colours", [0, 1, 2], OPTIONS)
    lines = "<Seg0> A title\n<Seg1> First.\n<Seg2> Second.\n"
    assert where[1] == f'{MARK} {MARK} {MARK} 给定文章"{lines}" 根据上述文章，选择适合插入图像的行'
    assert where[0] == "xcomposer2_places" and where[3].max_new_tokens == 200 and where[3].top_k == 40
    start = "根据给定上下文和候选图像，选择合适的配图："
    assert first[1:3] == (f"{start}A title\n候选图像包括: A.{MARK}\nB.{MARK}\nC.{MARK}", [0, 1, 2])
    assert second[1:3] == (f"{start}A title\n{MARK}First.\nSecond.\n候选图像包括: A.{MARK}\nB.{MARK}", [1, 0, 2])
    assert vlm.ends == {92542, 2, 92397}
    assert as_markdown([("A title", "b.png"), ("First.", None)]) == "A title\n\n![](b.png)\n\nFirst."


def test_an_answer_without_a_letter_takes_the_first_and_the_last_image_is_not_asked_for() -> None:
    vlm = Scripted("One\nTwo", "<Seg0><Seg1><Seg1>", "?")
    found = compose(vlm, "x", IMAGES[:2], options=OPTIONS)
    assert [section.image for section in found] == [0, 1] and not vlm.answers


def test_as_many_images_as_asked_for() -> None:
    vlm = Scripted("One\nTwo\nThree", "<Seg2><Seg1>", "C")
    found = compose(vlm, "x", IMAGES, options=OPTIONS, num_images=1)
    assert [section.image for section in found] == [None, 2, None] and "插入图像的1行" in vlm.asked[1][1]
    with pytest.raises(InputError, match="num_images is 4, but only 3"):
        compose(vlm, "x", IMAGES, options=OPTIONS, num_images=4)


def test_without_images_it_is_an_article_alone() -> None:
    vlm = Scripted("One\nTwo")
    assert [section.text for section in compose(vlm, "x", [], options=OPTIONS)] == ["One", "Two"]
    assert vlm.asked[0][:3] == ("xcomposer2_article", "x", [])


def test_other_families_write_none() -> None:
    other = SimpleNamespace(config=SimpleNamespace(model_class="CogVLMModel"))
    with pytest.raises(ConfigError, match="CogVLMModel writes no articles with images"):
        compose(other, "x", [], options=OPTIONS)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["Shapes", str(GOLDEN / "image.png"), "--from_pretrained", str(GOLDEN), "--device", "cpu"]
    given += ["--max_new_tokens", "12", "--seed", "1"]
    assert main([*given, "--json"]) == 0
    sections = json.loads(capsys.readouterr().out)["sections"]
    assert sections and all(section["image"] in (None, str(GOLDEN / "image.png")) for section in sections)
    assert main([*given, "--output", str(tmp_path / "article.md")]) == 0
    assert (tmp_path / "article.md").read_text().startswith(sections[0]["text"])
    with pytest.raises(InputError, match="does not exist"):
        main(["Shapes", str(tmp_path / "absent.png"), "--from_pretrained", str(GOLDEN)])
    with pytest.raises(ConfigError, match="prompts of their own"):
        main([*given, "--version", "xcomposer2"])
