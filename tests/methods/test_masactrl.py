"""MasaCtrl's union and mask-guided attention, against attention worked out token by token; side-by-side sampling."""

from __future__ import annotations

import golden_cases
import pytest
import torch
from torch import Tensor

from dragsa import ddim
from dragsa.hooks import Map, MutualSelfAttention, Site
from dragsa.methods import masactrl
from dragsa.methods.masactrl import MaskedSelfAttention, PromptMaskedSelfAttention, UnionSelfAttention

SELF, CROSS = Site(12, "self", (2, 3)), Site(8, "cross", (2, 3))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two heads of width 3, six tokens."""
    q, k, v = (drawn(seed, rows, 2, 6, 3) for seed in (1, 2, 3))
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def one_token(q: Tensor, k: Tensor, v: Tensor, among: list[int]) -> Tensor:
    """One query (d,) attends to the keys (m, d) numbered in `among`."""
    weights = torch.stack([torch.exp(q @ k[j] / len(q) ** 0.5) for j in among])
    return sum(w * v[j] for w, j in zip(weights / weights.sum(), among, strict=True))


@pytest.mark.parametrize("rows", [2, 4])
def test_union_is_one_softmax_over_both(rows):
    q, k, v = qkv(rows)
    out = UnionSelfAttention((12,))(SELF, q, k, v, attend)
    for s, t in ((0, 1), (2, 3))[: rows // 2]:
        assert torch.equal(out[s], attend(q, k, v)[s])
        for head in range(2):
            keys, values = torch.cat([k[s, head], k[t, head]]), torch.cat([v[s, head], v[t, head]])
            for n in range(6):
                assert torch.allclose(out[t, head, n], one_token(q[t, head, n], keys, values, list(range(12))))


@pytest.mark.parametrize("rows", [2, 4])
def test_object_attends_to_object_and_ground_to_ground(rows):
    q, k, v = qkv(rows)
    source, target = torch.tensor([[1, 1, 0], [0, 0, 0]]), torch.tensor([[False, False, True], [False, True, True]])
    out = MaskedSelfAttention(source, target, (12,))(SELF, q, k, v, attend)
    for s, t in ((0, 1), (2, 3))[: rows // 2]:
        assert torch.equal(out[s], attend(q, k, v)[s])
        for head in range(2):
            for n in range(6):
                among = [0, 1] if n in (2, 4, 5) else [2, 3, 4, 5]
                assert torch.allclose(out[t, head, n], one_token(q[t, head, n], k[s, head], v[s, head], among))


def test_masks_come_to_the_layers_grid_and_an_empty_one_excludes_nothing():
    q, k, v = qkv(2)
    fine = torch.zeros(4, 6)
    fine[:2, :2] = 1  # the first of 2×3 cells
    coarse = torch.zeros(2, 3)
    coarse[0, 0] = 1
    same = [MaskedSelfAttention(mask, mask, (12,))(SELF, q, k, v, attend) for mask in (fine, coarse)]
    assert torch.equal(*same)
    for mask in (torch.zeros(1, 1), torch.ones(1, 1)):
        out = MaskedSelfAttention(mask, coarse, (12,))(SELF, q, k, v, attend)
        assert torch.allclose(out, MutualSelfAttention((12,))(SELF, q, k, v, attend))
    assert not torch.allclose(same[0], MutualSelfAttention((12,))(SELF, q, k, v, attend), atol=1e-2)


def test_maps_are_the_heads_mean_and_change_nothing():
    q, k, v = drawn(1, 2, 2, 6, 3), drawn(2, 2, 2, 4, 3), drawn(3, 2, 2, 4, 3)
    hook = PromptMaskedSelfAttention((1,), (1,), blocks=(), mask_blocks=(8,))
    assert torch.equal(hook(CROSS, q, k, v, attend), attend(q, k, v))
    hook(Site(9, "cross", (2, 3)), q, k, v, attend)
    hook(Site(8, "self", (2, 3)), *qkv(2), attend)
    (found,) = hook.maps
    assert found.site == CROSS and found.weights.shape == (2, 2, 3, 4)
    for row in range(2):
        by_head = [attend(q[row, head], k[row, head], torch.eye(4, dtype=torch.float64)) for head in range(2)]
        assert torch.allclose(found.weights[row].flatten(0, 1), (by_head[0] + by_head[1]) / 2)


def test_an_objects_mask_is_where_its_tokens_are_looked_at():
    one, other = torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 3)
    one[0, ..., 1] = 0.3 + torch.tensor([[0.2, 0.4], [0.0, 0.1]])
    other[0, ..., 2] = torch.tensor([[0.2, 0.2], [0.0, 0.0]])
    # Above its least, the mean of both tokens' sums is 0.2, 0.3; 0, 0.05: between 0 and 1 that is 0.667, 1; 0, 0.167.
    for threshold, expected in ((0.1, [[1, 1], [0, 1]]), (0.2, [[1, 1], [0, 0]]), (0.7, [[0, 1], [0, 0]])):
        mask = masactrl.object_mask([one, other], (1, 2), threshold)
        assert torch.equal(mask, torch.tensor([expected], dtype=torch.bool))
    assert torch.equal(masactrl.object_mask([one, other], (1,), 0.3)[0], torch.tensor([[1, 1], [0, 0]]).bool())


def test_wrong_maps_tokens_and_masks_are_refused():
    maps = [torch.rand(1, 2, 2, 3), torch.rand(1, 4, 4, 3)]
    for given, tokens, says in (
        (maps, (1,), "came 2×2, 4×4"),
        ([], (1,), "came none"),
        (maps[:1], (3,), "from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=says):
            masactrl.object_mask(given, tokens)
    with pytest.raises(ValueError, match=r"must be \(h, w\), came \(1, 2, 3\)"):
        MaskedSelfAttention(torch.zeros(1, 2, 3), torch.zeros(2, 3))
    for hook in (UnionSelfAttention((12,)), MaskedSelfAttention(torch.zeros(2, 3), torch.zeros(2, 3))):
        with pytest.raises(ValueError, match="block12 self-attention: expected pairs of rows"):
            hook(SELF, *qkv(3), attend)


def test_prompt_masks_are_the_conditional_pairs():
    q, k, v = qkv(4)
    m = torch.zeros(4, 2, 3, 5)
    m[2, 0, 0, 1] = m[3, 1, 2, 4] = 1.0  # conditional source, token 1; conditional target, token 4
    m[0, ..., 1], m[1, ..., 4] = torch.rand(2, 3), torch.rand(2, 3)
    source, target = torch.zeros(2, 3), torch.zeros(2, 3)
    source[0, 0] = target[1, 2] = 1
    hook = PromptMaskedSelfAttention((1,), (4,), (12,))
    before = hook(SELF, q, k, v, attend)
    assert torch.equal(before, MutualSelfAttention((12,))(SELF, q, k, v, attend))
    hook.maps.append(Map(CROSS, m))
    assert torch.equal(hook(SELF, q, k, v, attend), MaskedSelfAttention(source, target, (12,))(SELF, q, k, v, attend))


# --- in the network ---------------------------------------------------------------------------------------------------


def scene() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, 4, 16, 16, generator=generator)
    return z, torch.randn(2, 77, golden_cases.CONTEXT_DIM, generator=generator)


def test_maps_of_a_pass_guide_the_same_pass():
    net, (z, context) = golden_cases.golden_unet(), scene()
    plain = net(z, 401, context).eps
    looking = PromptMaskedSelfAttention((1, 2), (5,), blocks=())
    assert torch.equal(net(z, 401, context, attention=looking).eps, plain)
    maps = [m.weights for m in looking.maps]
    assert [tuple(m.shape) for m in maps] == [(2, 4, 4, 77)] * 5
    assert torch.allclose(maps[0].sum(dim=-1), torch.ones(2, 4, 4))
    # The maps of blocks 5 … 10 lie before the controlled blocks, and so are those of a plain pass.
    source, target = masactrl.object_mask(maps, (1, 2))[0], masactrl.object_mask(maps, (5,))[1]
    by_hand = net(z, 401, context, attention=MaskedSelfAttention(source, target)).eps
    by_prompt = net(z, 401, context, attention=PromptMaskedSelfAttention((1, 2), (5,))).eps
    assert torch.allclose(by_prompt, by_hand, atol=1e-6)
    assert not torch.allclose(by_prompt, net(z, 401, context, attention=MutualSelfAttention()).eps, atol=1e-4)
    for hook in (PromptMaskedSelfAttention((1, 2), (5,)), UnionSelfAttention()):
        out = net(z, 401, context, attention=hook).eps
        assert torch.allclose(out[0], plain[0], atol=1e-5) and not torch.allclose(out[1], plain[1], atol=1e-3)


def test_controlled_sampling_under_any_hook():
    net, (z, context) = golden_cases.golden_unet(), scene()
    schedule, uncond = ddim.Schedule(6), context[:1].flip(1)
    asked, calls = [], []

    def hook_at(step):
        asked.append(step)
        return MutualSelfAttention() if step >= 2 else None

    given = (net, z[:1], z[1:], context, schedule, 5, 1, (1.0, 3.0), uncond)
    came = ddim.sample_controlled(*given, progress=lambda *at: calls.append(at), hook_at=hook_at)
    expected = ddim.sample_controlled(*given, control_step=2)
    assert torch.equal(came, expected) and came.shape == (5, 2, 4, 16, 16)
    assert asked == [0, 1, 2, 3] and calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    kept = {}
    ddim.sample_controlled(*given, record=lambda level, kv: kept.update({level: kv}), hook_at=hook_at)
    assert list(kept) == [3, 2]  # the source's K/V of the steps that have a hook
    union = ddim.sample_controlled(*given, hook_at=lambda step: UnionSelfAttention())
    assert torch.allclose(union[:, 0], expected[:, 0], atol=1e-5) and not torch.allclose(union[-1], expected[-1])


def test_a_mask_that_holds_everything_gives_the_golden_plain_form():
    case = golden_cases.case("control_plain")
    z_source, z_target = (case.input(name, 1, 4, *case.latent_hw) for name in ("z_source", "z_target"))
    text, schedule = case.input("text", 2, 77, 48), ddim.Schedule(case.settings["steps"], "dragdiffusion")
    everything = torch.ones(1, 1)
    hook = MaskedSelfAttention(everything, everything, tuple(range(case.settings["start_layer"] + 1, 17)))
    start = case.settings["actual_steps"]
    net = golden_cases.golden_unet()
    came = ddim.sample_controlled(net, z_source, z_target, text, schedule, start, hook_at=lambda step: hook)
    expected = case.outputs["latents"]
    assert (came - expected).abs().max() < 1e-3 * expected.abs().max()
