"""Stored weights held against a model: what is missing, unexpected or misshapen, and a source to read the rest from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mixins.sat_compat import mpu
from sat_models.checkpoint.layout import CONFIG_FILE, SATCheckpoint
from sat_models.checkpoint.reshard import SplitRule, StoredWeights, split_rules
from sat_models.errors import CheckpointError
from sat_models.models.build import computable_buffers
from sat_models.models.common.quantisation import QUANTISATION_KEY
from sat_models.models.common.quantised import SCALE

_HEAD = "mixins.lm.lm_head.weight"


def stored_weights(
    checkpoint: SATCheckpoint, model: nn.Module, stored: Sequence[Mapping[str, Tensor]] | None = None
) -> StoredWeights:
    """The weights of a checkpoint as they lie in its files, held against `model`.

    Args:
        stored: content of the files, if they have been read already.

    Raises:
        CheckpointError: unreadable, or names and shapes that do not fit.
    """
    stored, rules = stored or checkpoint.read(), split_rules(model)
    computed = {key for key, _, _ in computable_buffers(model)}
    check_fit(checkpoint, stored, model.state_dict(), rules, mpu.get_model_parallel_world_size(), optional=computed)
    return StoredWeights(stored, rules)


def check_fit(
    checkpoint: SATCheckpoint,
    stored: Sequence[Mapping[str, Tensor]],
    targets: Mapping[str, Tensor],
    rules: Mapping[str, SplitRule],
    size: int,
    *,
    optional: set[str],
) -> None:
    """Raise CheckpointError with all that is missing, unexpected or of a wrong shape."""
    for rank, part in enumerate(stored[1:], start=1):
        if part.keys() != stored[0].keys():
            raise CheckpointError(
                f"{checkpoint.files[rank].name} holds other names than {checkpoint.files[0].name} in "
                f"{checkpoint.step_folder}: {_shorten(sorted(part.keys() ^ stored[0].keys()))}. "
                "The files do not belong together."
            )
    missing = sorted(targets.keys() - stored[0].keys() - optional)
    unexpected = sorted(stored[0].keys() - targets.keys())
    wrong = []
    for key in targets.keys() & stored[0].keys():
        if stored[0][key].is_floating_point() != targets[key].is_floating_point():
            kinds = f"{stored[0][key].dtype} (the config needs {targets[key].dtype})"
            wrong.append(f"{checkpoint.stored_name(key)} {kinds}")
        wanted = rules[key].shard_shape(rules[key].full_shape(targets[key].shape, size), len(stored))
        wrong += [
            f"{checkpoint.stored_name(key)} {list(part[key].shape)} (the config needs {list(wanted)})"
            for part in stored
            if tuple(part[key].shape) != wanted
        ][:1]
    if not (missing or unexpected or wrong):
        return
    lines = [f"the weights in {checkpoint.step_folder} do not fit {checkpoint.config_file}:"]
    lines += [f"  {len(missing)} missing: {_shorten(list(map(checkpoint.stored_name, missing)))}"] if missing else []
    lines += [f"  {len(unexpected)} unexpected: {_shorten(unexpected)}"] if unexpected else []
    lines += [f"  {len(wrong)} of a wrong shape: {_shorten(sorted(wrong))}"] if wrong else []
    raise CheckpointError("\n".join([*lines, f"  {_remedy(checkpoint, missing, unexpected, bool(wrong))}"]))


def _shorten(names: Sequence[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f", … and {len(names) - limit} more" if len(names) > limit else "")


def _remedy(checkpoint: SATCheckpoint, missing: Sequence[str], unexpected: Sequence[str], wrong_shapes: bool) -> str:
    declared = checkpoint.config.get("model_parallel_size")
    if list(missing) == [_HEAD] and not (unexpected or wrong_shapes):
        return (
            "The head seems to be tied to the word embeddings, which these models' are not: store a copy of them as "
            f"{checkpoint.stored_name(_HEAD)}."
        )
    if any(".matrix_A." in name or ".original." in name for name in unexpected):
        return "These are LoRA weights that were not merged; merge them with scripts/merge_lora.py first."
    if any(name.endswith(f".{SCALE}") for name in unexpected):
        return f"These weights are quantised, but {checkpoint.config_file.name} lacks '{QUANTISATION_KEY}'."
    if wrong_shapes and checkpoint.config_file.name == CONFIG_FILE and declared not in (None, len(checkpoint.files)):
        return (
            f"The config says model_parallel_size {declared}, but {len(checkpoint.files)} weight file(s) are there: "
            f"copy the other mp_rank files into {checkpoint.step_folder}."
        )
    name = checkpoint.config.get("model_class")
    return f"Check that {checkpoint.config_file.name} belongs to these weights (model_class {name})."
