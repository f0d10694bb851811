"""The attention hook: what it is given, that an idle one changes no bit, the stock hooks, composition."""

import golden_cases
import pytest
import torch

from dragsa import hooks
from dragsa.hooks import KV, MutualSelfAttention, ReplayKV, compose
from dragsa.model.blocks import block_name


def inputs(batch=2, height=8, width=16):
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(batch, 4, height, width, generator=generator)
    return z, torch.randn(batch, 77, golden_cases.CONTEXT_DIM, generator=generator)


def passing(site, q, k, v, attend):
    return attend(q, k, v)


def test_idle_hooks_change_no_bit():
    net, (z, text) = golden_cases.golden_unet(), inputs()
    plain = net(z, 401, text).eps
    for hook in (passing, ReplayKV({}), MutualSelfAttention(()), compose(), compose(passing, passing)):
        assert torch.equal(net(z, 401, text, attention=hook).eps, plain), hook


def test_hook_sees_every_site_once_in_order():
    net, (z, text) = golden_cases.golden_unet(), inputs()
    seen = []

    def look(site, q, k, v, attend):
        seen.append((site, q.shape, k.shape))
        return attend(q, k, v)

    net(z, 401, text, attention=look)
    assert [site[:2] for site, _, _ in seen] == [(n, kind) for n in range(1, 17) for kind in ("self", "cross")]
    site, q, k = seen[2 * 13]
    assert site == hooks.Site(14, "self", (8, 16)) and site.name == "block14 self-attention"
    assert q == k == (2, 8, 128, 4)
    assert seen[2 * 13 + 1][2] == (2, 8, 77, 4)  # cross-attention's keys are the context's tokens


def test_mutual_self_attention_is_the_source_attended_by_the_target():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 2, 6, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    hook = MutualSelfAttention((12,))

    def attend(q, k, v, bias=None):
        return (q @ k.transpose(-1, -2) / 3**0.5).softmax(-1) @ v

    out = hook(hooks.Site(12, "self", (2, 3)), q, k, v, attend)
    for row, source in enumerate((0, 0, 2, 2)):  # pairs: unconditional source and target, conditional likewise
        assert torch.equal(out[row], attend(q[row], k[source], v[source]))
    for elsewhere in (hooks.Site(11, "self", (2, 3)), hooks.Site(12, "cross", (2, 3))):
        assert torch.equal(hook(elsewhere, q, k, v, attend), attend(q, k, v))


def test_replayed_kv_equals_side_by_side():
    net, (z, text) = golden_cases.golden_unet(), inputs()
    blocks = tuple(range(11, 17))
    both = net(z, 401, text, attention=MutualSelfAttention(blocks)).eps
    names = {block: f"{block_name(block)}.kv" for block in blocks}
    source = net(z[:1], 401, text[:1], taps=tuple(names.values()))
    replay = ReplayKV({block: source.taps[name] for block, name in names.items()})
    target = net(z[1:], 401, text[1:], attention=replay).eps
    assert torch.allclose(both[:1], source.eps, atol=1e-5)
    assert torch.allclose(both[1:], target, atol=1e-5)
    assert not torch.allclose(target, net(z[1:], 401, text[1:]).eps, atol=1e-3)


def test_tapped_kv_is_the_layers_own_under_a_hook():
    net, (z, text) = golden_cases.golden_unet(), inputs()
    plain = net(z, 401, text, taps=("block01.kv",)).taps["block01.kv"]
    hooked = net(z, 401, text, attention=MutualSelfAttention((1,)), taps=("block01.kv",)).taps["block01.kv"]
    assert torch.equal(plain.key, hooked.key) and torch.equal(plain.value, hooked.value)


def test_composition_is_from_the_outside_in():
    calls = []

    def named(name):
        def hook(site, q, k, v, attend):
            calls.append(name)
            return attend(q + 1, k, v) * 2

        return hook

    q = torch.zeros(1, 1, 1, 1)
    out = compose(named("outer"), named("inner"))(hooks.Site(1, "self", (1, 1)), q, q, q, lambda q, k, v, bias=None: q)
    assert calls == ["outer", "inner"] and out.item() == 8  # ((0 + 1 + 1) · 2) · 2


def test_gradient_flows_through_a_hook():
    net, (z, text) = golden_cases.golden_unet(), inputs()
    z.requires_grad_()
    out = net(z, 401, text, attention=MutualSelfAttention(), taps=("block14",), until="block14")
    (gradient,) = torch.autograd.grad(out.taps["block14"][1].sum(), z)
    assert gradient[0].abs().max() > 0  # the target's feature depends on the source's latent


@pytest.mark.parametrize(
    ("hook", "batch", "says"),
    [
        (
            lambda site, q, k, v, attend: q[:, :, :1],
            2,
            r"block01 self-attention: the hook must return \(2, 8, 128, 4\)",
        ),
        (MutualSelfAttention((11,)), 1, "block11 self-attention: expected pairs of rows"),
        (
            ReplayKV({12: KV(torch.zeros(1, 8, 5, 8), torch.zeros(1, 8, 5, 8))}),
            2,
            "block12 self-attention: recorded K/V",
        ),
    ],
)
def test_wrong_shapes_name_the_site(hook, batch, says):
    z, text = inputs(batch)
    with pytest.raises(ValueError, match=says):
        golden_cases.golden_unet()(z, 401, text, attention=hook)


def test_unknown_blocks_are_refused():
    kv = KV(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    for make in (lambda: MutualSelfAttention((0, 11)), lambda: ReplayKV({17: kv})):
        with pytest.raises(ValueError, match="no transformer block"):
            make()
