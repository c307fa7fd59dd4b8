"""Muon for matrices, AdamW for the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sat_models.training.muon import MuonAdamW, orthogonalise
from sat_models.training.trainable import parameter_groups
from sat_models.zoo import load_pretrained


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 6, 6)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(matrices)
    assert found.shape == shape
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.35
    # The directions stay: U·Vᵀ is what the iteration goes towards.
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    assert (found * (u @ vt)).sum() / values.sum() > 0.99


def test_vectors_move_as_adamw_moves_them() -> None:
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    mine = MuonAdamW([{"params": [ours], "lr": 0.1, "weight_decay": 0.2}], betas=(0.9, 0.95))
    torchs = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.2, betas=(0.9, 0.95))
    for step in range(5):
        for parameter, optimizer in ((ours, mine), (theirs, torchs)):
            parameter.grad = torch.linspace(-1, 1, 5) * (step + 1)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_a_matrix_moves_by_its_rate_in_every_direction() -> None:
    matrix = nn.Parameter(torch.zeros(4, 8))
    optimizer = MuonAdamW([{"params": [matrix], "lr": 0.01, "muon": True}])
    matrix.grad = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)) * 1e-3  # the size does not matter
    optimizer.step()
    values = torch.linalg.svdvals(matrix.detach())
    assert values.min() > 0.006 and values.max() < 0.0135


def test_groups_hold_hidden_matrices_apart() -> None:
    model = load_pretrained("cogvlm-tiny", device="cpu", dtype="float32").model.requires_grad_(True)
    groups = parameter_groups(model, learning_rate=1e-3, rate_scales={"vit": 0.5}, muon_rate=10.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    moved = {names[p] for group in groups if group["muon"] for p in group["params"]}
    assert "mixins.mlp.vision_gate_proj.0.weight" in moved and "transformer.layers.0.mlp.dense_4h_to_h.weight" in moved
    others = {names[p] for group in groups if not group["muon"] for p in group["params"]}
    assert {"transformer.word_embeddings.weight", "mixins.lm.lm_head.weight", "mixins.eva.boi"} <= others
    assert "mixins.eva.vit_model.mixins.patch_embedding.proj.weight" in others
    assert sum(len(group["params"]) for group in groups) == len(names)
    rates = {(group["name"], group["muon"]): group["lr"] for group in groups}
    assert rates["vit", True] == pytest.approx(5e-3) and rates["vit", False] == pytest.approx(5e-4)
    assert rates["language", True] == pytest.approx(1e-2)
    assert not any("muon" in group for group in parameter_groups(model, learning_rate=1e-3))
