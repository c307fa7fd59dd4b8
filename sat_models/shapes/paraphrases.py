"""More ways to ask the same: what training takes beside the documented wordings of `questions`.

With a handful of wordings a model learns the strings and not the words: taught "What color is the circle?" alone, it
answers "What color is the circle in this image?" by describing an area. So any wording may also stand in a frame that
leaves its meaning alone (`framed`). None of all these is in the test's own lists (`other_eyes`), and the test through
the world's own eyes asks in documented wordings only.
"""

from __future__ import annotations

import random
import re

PARAPHRASES: dict[str, tuple[str, ...]] = {
    "caption": (
        "Describe what is in the picture.",
        "What is in this picture?",
        "Tell me what you see.",
        "Describe the objects in this image.",
        "What objects do you see?",
        "What shapes are in the image?",
        "What does the image show?",
        "List the objects.",
        "What can you see?",
    ),
    "grounded_caption": (
        "Describe the objects and give a box for each.",
        "Tell me what is in the picture, with boxes.",
        "What is in this image? Give the boxes.",
        "Describe each shape with its box.",
        "Describe what you see with a box for each object.",
        "List the objects with their boxes.",
    ),
    "rec": (
        "Tell me where {expr} is.",
        "Give a box for {expr}.",
        "Tell me the box of {expr}.",
        "Where is {expr} in this image?",
        "Where in the picture do you see {expr}? Answer with a box.",
        "What box does {expr} have?",
        "Find {expr}.",
        "Locate {expr}.",
        "Show me where {expr} is.",
    ),
    "reg": (
        "Tell me what is in the area {box}.",
        "What do you see at {box}?",
        "What object is at {box}?",
        "Describe what you see within the area {box}.",
        "What is within {box}?",
        "Name the object at {box}.",
        "What lies in {box}?",
    ),
    "color": (
        "What color does the {noun} have?",
        "Give the color of the {noun}.",
        "Tell me what color the {noun} is.",
        "The {noun} has what color?",
        "In this image, what color is the {noun}?",
        "Which color is the {noun}?",
        "Name the color of the {noun}.",
        "What colour does the {noun} have?",
    ),
    "form": (
        "What is the form of the {color} object?",
        "Tell me what shape the {color} object is.",
        "Give the shape of the {color} object.",
        "What shape does the {color} object have?",
        "The {color} object has what form?",
        "Name the shape of the {color} object.",
        "Which shape is the {color} object?",
    ),
    "count": (
        "How many {nouns} does the picture have?",
        "Count the {nouns} in the image.",
        "Give the number of {nouns}.",
        "Tell me the number of {nouns} in this image.",
        "How many {nouns} can you see?",
        "What is the number of {nouns}?",
    ),
    "exist": (
        "Is {name} in this image?",
        "Can you see {name}?",
        "Does the picture have {name}?",
        "Tell me, is there {name} in the picture?",
        "Do you see {name} here?",
        "Does the image contain {name}?",
        "Is there {name} anywhere?",
    ),
    "size": (
        "Tell me the size of the {name}.",
        "How large is the {name}?",
        "Is the {name} a large or a small one?",
        "Tell me, is the {name} small or large?",
    ),
    "left_right": (
        "Tell me, is the {name} left or right of the {other}?",
        "Is the {name} on the left or on the right of the {other}?",
        "The {name}, is it right or left of the {other}?",
        "Where is the {name}, to the left or to the right of the {other}?",
    ),
    "above_below": (
        "Tell me, is the {name} above or below the {other}?",
        "The {name}, is it below or above the {other}?",
        "Where is the {name}, above or below the {other}?",
        "Is the {name} above the {other} or below it?",
    ),
    "digit": (
        "What digit does the {name} have?",
        "Tell me what digit is on the {name}.",
        "Which digit is on the {name}?",
        "Read the digit on the {name}.",
        "Which number is on the {name}?",
        "What is written on the {name}?",
    ),
}
"""By kind of question (`QA.kind`, `rec` for its partial form, too)."""

PLACES = ("in this image", "in the image", "in this picture", "in the picture", "in the photo")
LEADS = ("Please, ", "Look at the image. ", "Look at this picture: ")


def frames(question: str) -> list[str]:
    """The question in every frame: the place behind or before it, a lead, and typed without capital and mark.

    A question that names its place (image, picture) gets no second one.
    """
    lower = question[0].lower() + question[1:]
    framed = [lower.rstrip(".?"), *(lead + (question if "." in lead else lower) for lead in LEADS)]
    if re.search("image|picture", question):
        return framed
    end = re.search("[.?]", question).start()  # type: ignore[union-attr]
    framed += [f"{question[:end]} {place}{question[end:]}" for place in (*PLACES, "here")]
    return framed + [f"{place.capitalize()}, {lower}" for place in PLACES]


def framed(question: str, rng: random.Random) -> str:
    """The question in one of its frames."""
    return rng.choice(frames(question))
