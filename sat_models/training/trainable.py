"""The plan of what trains: declared, counted, logged and checked.

A plan names groups (or shell patterns over parameter names) that train in full, and groups that get LoRA; all else is
frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.lora import LoRASettings, apply_lora, linear_names, lora_state_dict
from mixins.lora_settings import matching
from mixins.parallel import sum_copies
from mixins.ptuning import add_ptuning
from mixins.sat_compat import RowParallelLinear, mpu
from sat_models.checkpoint.reshard import split_rules
from sat_models.errors import ConfigError
from sat_models.training.groups import (
    check_rate_scales,
    group_of,
    named_groups,
    no_match,
    select_parameters,
    vision_groups,
)

ALL = "all"
ATTENTION = "transformer.layers.*.attention.*"
"""The attention of all layers of a painter, the linears that the originals adapt."""
TRAINABLE = ("expert", "attention", ALL)


@dataclass(frozen=True, kw_only=True)
class TrainablePlan:
    """The plan of what trains.

    Attributes:
        full: groups or shell patterns over parameter names that train in full.
        lora: groups or shell patterns whose linears get LoRA; "all" is every group that is `adapted`.
        rank, alpha, dropout, use_dora, layer_range: of LoRA, see `LoRASettings`.
        prefix_length: tokens of a p-tuning prefix (`--pre_seq_len`); 0 for none.
        rate_scales: factor of the learning rate by group; 1 where not named.
        seed: of what is new.
    """

    full: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    rank: int = 10
    alpha: float = 1.0
    dropout: float = 0.0
    use_dora: bool = False
    layer_range: tuple[int, ...] | None = None
    prefix_length: int = 0
    rate_scales: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate_scales(self.rate_scales)


def plan_of(trainable: str, rank: int, **options: Any) -> TrainablePlan:
    """The plan of the documented command's LORA_RANK and TRAINABLE.

    | rank | `expert` | `attention` | `all` |
    |---|---|---|---|
    | -1 | the visual expert in full | the attention of the transformer's layers in full | everything |
    | r > 0 | LoRA on the visual expert's linears | LoRA on these | LoRA on the linears of all groups |

    The visual expert is of models that talk; painters have `attention`.

    Args:
        options: further fields of `TrainablePlan`.

    Raises:
        ConfigError: another word or rank.
    """
    if trainable not in TRAINABLE:
        raise ConfigError(f"TRAINABLE must be {', '.join(TRAINABLE[:-1])} or {ALL}, got {trainable!r}")
    if isinstance(rank, bool) or not isinstance(rank, int) or (rank < 1 and rank != -1):
        raise ConfigError(f"LORA_RANK must be a positive integer, or -1 for no LoRA; got {rank!r}")
    part = {"expert": "vision_expert", "attention": ATTENTION}
    if rank == -1:
        return TrainablePlan(full=(part.get(trainable, "*"),), **options)
    return TrainablePlan(lora=(part.get(trainable, ALL),), rank=rank, **options)


def lora_settings(model: ZooModel, plan: TrainablePlan) -> LoRASettings:
    """The plan's LoRA with its groups spelled out as patterns that fit linears of `model`.

    Raises:
        ConfigError: a group without linears.
        ValueError: a rank, alpha, … out of range.
    """
    names, targets, groups = linear_names(model), [], named_groups()
    for wanted in plan.lora:
        meant = [group for name, group in groups.items() if (group.adapted if wanted == ALL else name == wanted)]
        patterns = [p for group in meant for p in group.patterns if matching(p, names, suffix=".weight")]
        if meant and not patterns:
            raise ConfigError(f"{no_match(wanted, names)}. LoRA adapts linears only")
        targets += patterns or [wanted]
    return LoRASettings(
        targets=tuple(targets),
        rank=plan.rank,
        alpha=plan.alpha,
        dropout=plan.dropout,
        use_dora=plan.use_dora,
        layer_range=plan.layer_range,
        seed=plan.seed,
    )


def apply_plan(model: ZooModel, plan: TrainablePlan) -> list[str]:
    """Freeze `model`, then add and unfreeze what `plan` says, in place; all ranks call it, with weights loaded.

    What the checkpoint holds but no forward reads (in CogAgent's high-resolution tower) stays frozen in any case.

    Returns:
        Names of the parameters that train.

    Raises:
        ConfigError: a group or pattern that fits nothing, weights that shall train in full and by LoRA, or a plan that
            trains nothing. The model may have LoRA already by then.
    """
    names = [name for name, _ in model.named_parameters()]
    trains = set(select_parameters(names, plan.full)) - _never_run(model)
    model.requires_grad_(False)
    try:
        adapted = apply_lora(model, lora_settings(model, plan)) if plan.lora else []
        if plan.prefix_length:
            add_ptuning(model, plan.prefix_length, seed=plan.seed)
    except (ValueError, KeyError) as error:
        raise ConfigError(str(error.args[0])) from error
    if twice := [name for name in adapted if trains & {f"{name}.weight", f"{name}.bias"}]:
        raise ConfigError(f"the plan trains {len(twice)} linears in full and by LoRA, such as {twice[0]}; choose one")
    trains |= lora_state_dict(model).keys()
    trains |= {name for name, _ in model.named_parameters() if group_of(name) == "prefix"}
    if not trains:
        raise ConfigError(
            f"nothing would train; name groups ({', '.join(named_groups())}), LoRA targets or a prefix length"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trains)
    mark_model_parallel(model)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _never_run(model: nn.Module) -> set[str]:
    """Names of parameters that no forward reads, as the modules that hold them say."""
    unread = {id(p) for m in model.modules() for part in getattr(m, "never_run", ()) for p in part.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in unread}


def mark_model_parallel(model: nn.Module) -> None:
    """Marks on the parameters that training over several ranks needs.

    Each says whether it is divided (DeepSpeed counts whole ones once in gradient norms). A row-parallel bias that SAT
    divides by the number of ranks before the sum gets its whole gradient: SAT's own is too small by that number. So do
    heads of which several ranks hold copies, since each copy has that of its own rank's queries. (Where a norm of all
    gradients clips them, DeepSpeed counts such a head once for each copy.)
    """
    rules, size = split_rules(model), mpu.get_model_parallel_world_size()
    for name, parameter in model.named_parameters():
        rule = rules[name]
        parameter.model_parallel = parameter.tensor_model_parallel = not rule.whole_at(size)
        if rule.has_copies(size):
            _complete(parameter, partial(sum_copies, parts=rule.part_heads, dim=rule.dim))
    for module in model.modules():
        divides = isinstance(module, RowParallelLinear) and module.bias is not None and not module.final_bias
        if divides and size > 1:
            _complete(module.bias, lambda gradient: gradient * size)


def _complete(parameter: nn.Parameter, make_whole: Callable[[Tensor], Tensor]) -> None:
    """From now on a parameter that trains gets this of its gradient."""
    if parameter.requires_grad and not hasattr(parameter, "whole_gradient"):
        parameter.whole_gradient = parameter.register_hook(make_whole)


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    rate_scales: Mapping[str, float] | None = None,
    muon_rate: float | None = None,
) -> list[dict[str, Any]]:
    """The trained parameters for an optimiser, by group; vectors and embeddings do not decay.

    Args:
        muon_rate: for `MuonAdamW`: hidden matrices form groups of their own, with `muon` True, and learn at this
            multiple of the rate. None for an optimiser that treats all alike.

    Returns:
        Dicts with `params`, `lr`, `weight_decay`, `name` (of the group) and `rate_scale`, by which a schedule
        multiplies its rate.
    """
    rate_scales = rate_scales or {}
    check_rate_scales(rate_scales)
    groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = group_of(name)
            decays = group != "embeddings" and max(parameter.shape, default=1) != parameter.numel()
            muon = muon_rate is not None and decays and parameter.ndim == 2 and group != "head"
            groups.setdefault((group, decays, muon), []).append(parameter)
    if absent := rate_scales.keys() - {group for group, *_ in groups}:
        raise ConfigError(f"a learning-rate scale is given for {', '.join(sorted(absent))}, of which nothing trains")
    made = []
    for (group, decays, muon), parameters in groups.items():
        scale = rate_scales.get(group, 1.0) * (muon_rate if muon else 1.0)
        made.append({
            "params": parameters, "lr": learning_rate * scale, "weight_decay": weight_decay if decays else 0.0,
            "name": group, "rate_scale": scale,
        } | ({} if muon_rate is None else {"muon": muon}))  # fmt: skip
    return made


def trainable_table(model: nn.Module) -> str:
    """Groups with their parameters over all model-parallel ranks, share of the model, and what of them trains."""
    size, rules = mpu.get_model_parallel_world_size(), split_rules(model)
    counts: dict[str, list[int]] = {}
    adapters = lora_state_dict(model).keys()
    ways: dict[str, set[str]] = {}
    for name, parameter in model.named_parameters():
        count, group = math.prod(rules[name].full_shape(parameter.shape, size)), group_of(name)
        sums = counts.setdefault(group, [0, 0])
        sums[0] += count
        if parameter.requires_grad:
            sums[1] += count
            ways.setdefault(group, set()).add("LoRA" if name in adapters else "in full")
    everything, trained = (sum(sums[i] for sums in counts.values()) for i in (0, 1))
    rows = [("group", "parameters", "of model", "trains", "how")]
    for group in (group for group in named_groups() if group in counts):
        own, trains = counts[group]
        how = " and ".join(sorted(ways.get(group, ())))
        rows.append((group, f"{own:,}", _percent(own, everything), f"{trains:,}", how or "frozen"))
    rows.append(("all", f"{everything:,}", "100 %", f"{trained:,}", f"{_percent(trained, everything)} of the model"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join((row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:4], widths[1:4], strict=True)), row[4]))
        for row in rows
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %"


class GradientWatch:
    """Sees which parameters get a gradient, under any engine (ZeRO takes `.grad` away): watch, backward, `check`."""

    def __init__(self, model: nn.Module) -> None:
        self.waiting = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._hooks = [
            parameter.register_hook(lambda gradient, name=name: self.waiting.discard(name))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]

    def check(self, *, had_images: bool = True) -> None:
        """End the watch. Raises ConfigError with the parameters that train but got no gradient.

        Args:
            had_images: False excuses what only pictures reach.
        """
        for hook in self._hooks:
            hook.remove()
        _require_none(self.waiting, had_images)


def _require_none(names: set[str], had_images: bool) -> None:
    vision = vision_groups()
    without = sorted(name for name in names if had_images or group_of(name) not in vision)
    if without:
        more = f", … and {len(without) - 5} more" if len(without) > 5 else ""
        raise ConfigError(
            f"{len(without)} parameters shall train, but got no gradient: {', '.join(without[:5])}{more}. Nothing in "
            "this batch reaches them (without pictures: the vision parts), or the model does not use them: freeze them"
        )
