"""Flags that several commands share, each declared once: which model, how it answers; and what commands do about
numbers that make no sense and about flags of another mode.

Importing it is light, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sat_models.errors import ConfigError, InputError
from sat_models.models.families import prompt_style, version_help
from sat_models.processing.hubs import HUBS, choose_hub

if TYPE_CHECKING:
    from sat_models.generation.sampling import SamplingOptions
    from sat_models.generation.strict.constraint import Constraint

DEFAULT_MODEL = "cogvlm-tiny"
_LOADING = ("device", "dtype", "local_tokenizer", "quant", "quant_skip", "quant_head", "cache", "version")
_SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "repetition_penalty")
MODEL_FLAGS = frozenset(("from_pretrained", "hub", *_LOADING))
"""Names of what `add_model_flags` adds."""
SAMPLING_FLAGS = frozenset(_SAMPLING)
"""Names of what `add_sampling_flags` adds."""


def flag(parser: argparse._ActionsContainer, name: str, **kwargs: Any) -> None:
    """A flag that is understood with `_` and with `-`."""
    parser.add_argument(*dict.fromkeys(("--" + name, "--" + name.replace("_", "-"))), dest=name, **kwargs)


def positive(text: str) -> int:
    """A whole number from 1, as the type of a flag."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is loaded: what `loading` makes arguments of `load_pretrained` of."""
    add_name_flags(parser)
    flag(parser, "quant", type=int, choices=(4, 8), help="quantise the linears to 4 or 8 bits while loading")
    flag(parser, "quant_skip", nargs="+", default=(), metavar="PATTERN", help="linears that --quant leaves alone")
    flag(
        parser, "quant_head", action=argparse.BooleanOptionalAction, default=None,
        help="decode on a CPU with an output projection of 8 bits (default: where the linears are quantised)",
    )  # fmt: skip
    flag(
        parser, "cache", choices=("auto", "model", "bf16", "int8"), default="auto",
        help="keys and values while decoding: as the model computes them, in bf16, or in bytes (default: int8 where "
        "quantised linears are multiplied on a CPU, else model)",
    )  # fmt: skip
    add_device_flags(parser)


def add_name_flags(parser: argparse.ArgumentParser, *, default: str | None = DEFAULT_MODEL) -> None:
    """Which model, with what prompts and tokenizer.

    Args:
        default: the model where none is named; None where the command does without.
    """
    shown = " (default: %(default)s)" if default else "; its tokenizer and image sizes are used, weights are not needed"
    flag(parser, "from_pretrained", default=default, metavar="NAME_OR_PATH", help=f"model{shown}")
    flag(parser, "local_tokenizer", metavar="PATH", help="tokenizer file, folder or Hugging Face repository")
    flag(parser, "version", metavar="STYLE", help=version_help())
    add_hub_flag(parser)


class _Hub(argparse.Action):
    """Chooses the hub when the flag is read: what is fetched later, also by processes that are started, is of it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, values)
        choose_hub(values)


def add_hub_flag(parser: argparse.ArgumentParser) -> None:
    """Where models and tokenizers are fetched that are named by an id."""
    flag(
        parser, "hub", choices=HUBS, action=_Hub, metavar="HUB",
        help="where ids are fetched from: huggingface or modelscope (default: huggingface, or as USE_MODELSCOPE says)",
    )  # fmt: skip


def add_device_flags(parser: argparse._ActionsContainer) -> None:
    """Where it computes, and in what dtype."""
    flag(parser, "device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--dtype", default="auto", help="auto, fp32, bf16 or fp16 (default: %(default)s)")
    for name in ("fp16", "bf16", "fp32"):
        kinds.add_argument(f"--{name}", dest="dtype", action="store_const", const=name, help=f"--dtype {name}")


def add_box_flags(parser: argparse._ActionsContainer) -> None:
    """What is asked about boxes in pixels of training data: arguments of `grounding.asking.asking_from`."""
    flag(parser, "box_tasks", nargs="+", metavar="TASK=SHARE", help="questions about boxes, such as rec=1 absent=0.5")
    flag(parser, "box_templates", metavar="YAML", help="their wordings (docs/finetuning.md)")


def loading(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `load_pretrained`, but for the name, of a model that talks.

    Raises:
        UnknownNameError: a prompt style that no family has; found before minutes go into loading.
    """
    if args.version is not None:
        prompt_style(args.version)
    return {"task": "dialogue", **{name: getattr(args, name) for name in _LOADING}}


def add_sampling_flags(
    parser: argparse.ArgumentParser,
    *,
    max_new_tokens: int | None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
) -> None:
    """How tokens are chosen: what `sampling_options` reads. The arguments are the defaults.

    Args:
        max_new_tokens: None for what the model's context leaves.
    """
    tokens = "%(default)s" if max_new_tokens else "what the model's context leaves"
    flag(parser, "max_new_tokens", type=int, default=max_new_tokens, help=f"tokens of an answer (default: {tokens})")
    flag(parser, "temperature", type=float, default=temperature, help="0 is greedy (default: %(default)s)")
    flag(parser, "seed", type=int, default=seed, help="of the sampling; the same seed gives the same answer")
    flag(parser, "top_p", type=float, default=top_p, help="nucleus sampling (default: %(default)s)")
    flag(parser, "top_k", type=int, default=top_k, help="1 is greedy, 0 keeps all (default: %(default)s)")
    flag(
        parser, "repetition_penalty", type=float, default=1.0,
        help="above 1: tokens that the answer holds already become less likely (default: %(default)s)",
    )  # fmt: skip


def add_scores_flag(parser: argparse._ActionsContainer) -> None:
    """Whether answers come with their probabilities."""
    flag(
        parser, "scores", action="store_true",
        help="with each answer the probability of its tokens together, and of each box the mean of its numbers, 0 to 1",
    )  # fmt: skip


def add_constraint_flags(parser: argparse._ActionsContainer) -> None:
    """The form that answers must have: what `constraint_of` reads."""
    flag(parser, "json_schema", metavar="FILE_OR_TEXT", help="answers are JSON that this schema allows")
    flag(parser, "regex", metavar="PATTERN", help="answers match this regular expression (Rust's syntax) as a whole")
    flag(parser, "choice", nargs="+", action="extend", metavar="TEXT", help="answers are one of these texts")
    flag(
        parser, "boxes_only", action="store_true", help="answers are boxes, in the form of the model, and nothing else"
    )
    flag(parser, "boxes_whole", action="store_true", help="answers are text in which every box is whole")


def constraint_of(args: argparse.Namespace) -> Constraint | None:
    """The form that the flags ask for, compiled once to see that it can be; before weights are read.

    Raises:
        ConfigError: several of them.
        InputError: a file that cannot be read, or a schema, regex or choices that cannot be used.
        MissingPackageError: a schema or regex without llguidance.
    """
    names = ("json_schema", "regex", "choice", "boxes_only", "boxes_whole")
    asked = [name for name in names if getattr(args, name) not in (None, False)]
    if not asked:
        return None
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(f'--{name}' for name in asked)} each ask for a form; give one of them")
    from sat_models.generation.strict.constraint import Constraint
    from sat_models.generation.strict.guide import check_source

    if args.json_schema is not None:
        constraint = Constraint.json(_text_of(args.json_schema))
    elif args.regex is not None:
        constraint = Constraint.regex(args.regex)
    elif args.choice is not None:
        constraint = Constraint.choice(args.choice)
    else:
        constraint = Constraint.boxes(in_text=args.boxes_whole)
    check_source(constraint)
    return constraint


def _text_of(schema: str) -> str:
    """A JSON schema that stands in a flag or in a file."""
    if schema.lstrip().startswith("{"):
        return schema
    try:
        return Path(schema).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--json_schema is '{schema[:80]}': no JSON object, and no file that can be read ({reason}). Give a file, "
            'or the schema itself, such as \'{"type": "object"}\'.'
        ) from error


def sampling_options(args: argparse.Namespace, **others: Any) -> SamplingOptions:
    """Sampling as the flags say; `others` are further fields.

    Raises:
        InputError: a value out of its range.
    """
    from sat_models.generation.sampling import SamplingOptions

    return SamplingOptions(**{name: getattr(args, name) for name in _SAMPLING}, **others)


def refuse_unused(parser: argparse.ArgumentParser, args: argparse.Namespace, used: Collection[str], mode: str) -> None:
    """Flags that `mode` does not read must be as they are by default: what somebody asks for is done, or is an error.

    Args:
        parser: what `args` comes from.
        used: names of what is read.
        mode: as the user asked for it, such as "--task captcha".

    Raises:
        ConfigError: others were given.
    """
    others = [
        action.option_strings[0]
        for action in parser._actions
        if action.dest in vars(args) and action.dest not in used and getattr(args, action.dest) != action.default
    ]
    if others:
        raise ConfigError(f"{mode} does not read {', '.join(others)}; leave {'it' if len(others) == 1 else 'them'} out")


def check_numbers(
    args: argparse.Namespace, at_least: Mapping[str, float] | None = None, *, above: Mapping[str, float] | None = None
) -> None:
    """Sees that numbers make sense, before any work begins; of several values each. Flags that
    were left out (None) are passed over.

    Args:
        at_least: the smallest value that is allowed, by the flag's name.
        above: what a value must be larger than, by the flag's name.

    Raises:
        ConfigError: one does not, or is infinite or no number.
    """
    for bounds, rule in ((at_least or {}, "at least"), (above or {}, "above")):
        for name, bound in bounds.items():
            given = getattr(args, name)
            for value in given if isinstance(given, list | tuple) else [given]:
                fits = value is None or (value >= bound if rule == "at least" else value > bound)
                if not fits or not math.isfinite(value or 0):
                    raise ConfigError(f"--{name} is {value}; it must be {rule} {bound}")
