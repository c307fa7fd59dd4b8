"""Trains the tokenizer of `cogvlm-tiny`: sentencepiece BPE of Vicuna's kind on text of the synthetic world.

Same conventions as Vicuna-7B-v1.5: unk 0, bos 1, eos 2, no pad, byte fallback, no normalisation, a leading-space piece
in front of every text, every digit its own piece. The words of the world are single pieces.
"""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from sat_models.models.families import prompt_style
from sat_models.processing.prompts import build_prompt
from sat_models.shapes.questions import any_question
from sat_models.shapes.scenes import sample_scene

logger = logging.getLogger(__name__)

PROMPT_VERSIONS = ("base", "chat", "chat_old", "vqa")
ASCII = "".join(chr(code) for code in range(33, 127))


def world_text(*, count: int, seed: int = 0) -> Iterator[str]:
    """Lines of text: `count` questions in prompts of every version, and their answers.

    Punctuation after a box is left out, so that `]]` stays one piece wherever it stands.
    """
    rng = random.Random(f"tokenizer/{seed}")
    for _ in range(count):
        scene = sample_scene(rng)
        for version in PROMPT_VERSIONS:
            qa = any_question(scene, rng)
            yield _without_marks(build_prompt(prompt_style(version), qa.question, ()))
            yield _without_marks(qa.answer)


def train_tokenizer(output: Path, *, vocab_size: int = 576, count: int = 4000, seed: int = 0) -> None:
    """Trains and writes a sentencepiece model.

    Args:
        output: file to write; its folder is made where missing.
        vocab_size: number of pieces, of which 3 are special and 256 are bytes.
        count: pictures whose text is used.
        seed: of the text.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=world_text(count=count, seed=seed),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        required_chars=ASCII,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(model.getvalue())
    logger.info("wrote %s: %d pieces", output, vocab_size)


def _without_marks(text: str) -> str:
    for mark in ".,?":
        text = text.replace(f"]]{mark}", "]]")
    return text
