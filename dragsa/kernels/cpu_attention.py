"""Attention in bfloat16 on the CPU and its gradient, as matrix products of as many weights as the cache holds.

PyTorch's own kernels take the products in small tiles, at a third of the rate that oneDNN's have in bfloat16. Both keep
Q, K, V, what came out, and one number a query, the logarithm of its softmax's denominator; the gradient computes the
weights once more. Each thread computes heads of its own, so that one's exponentials fall between another's products.

What these products cost is exactness: scores come out of them rounded to bfloat16, in PyTorch's kernel in float32. But
a number in bfloat16 is as exact as it is near zero. So scores are moved there before they are rounded, each query's by
about what those are that matter: two more columns of the product subtract it, the number rounded and the rest. The
error of a layer is up to three times that of PyTorch's kernel where values are about zero, the worst case, and 1.4
times in the trained small model; that of a pass through SD 1.5's UNet with seeded values grows by a hundredth or two.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHTS = 2**20  # of one head that are held at a time: 2 MB
LEAST = 2**18  # weights of a head, under which PyTorch's gradient is as fast
LEAST_FORWARD = 2**20, 1024  # and weights and keys, under which its kernel is
SPREAD = 8.0  # deviation of a query's scores, over which too few weights matter for their errors to even out
PARTS = 16  # of a query's weights that are summed apart, each part's sum in bfloat16
SAMPLE = 32  # queries of a head, of which the weights' entropy is measured

_pytorchs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_pytorchs_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def has_faster_forward(q: Tensor, k: Tensor) -> bool:
    """Tell whether ours is faster for q (B, heads, n, d) and k (B, heads, m, d) even where no gradient is wanted.

    Milliseconds of PyTorch's kernel and ours on one core of Zen 4, 8 heads, bfloat16: 340 and 215 of 4096 × 4096
    weights, 34 and 27 of 1024 × 1024; 11 and 20 of 4096 × 77, which is PyTorch's. On two that share what is a core's:
    162 and 110 of the first.
    """
    weights, keys = LEAST_FORWARD
    there = q.device.type == "cpu" and q.dtype == torch.bfloat16
    return there and k.shape[2] >= keys and q.shape[2] * k.shape[2] >= weights


def has_faster_gradient(q: Tensor, k: Tensor) -> bool:
    """The same where a gradient is wanted: whether this module's is the faster one.

    Milliseconds of the two on one core of Zen 4, 8 heads, bfloat16: 660 and 440 of 4096 × 4096 weights, 64 and 53 of
    1024 × 1024, 25 and 15 of 4096 × 77 where K and V want no gradient; equal at 256 × 256 and 256 × 77. On two that
    share what is a core's: 318 and 241 of the first. In float32 the products are no faster than PyTorch's gradient.
    """
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] * k.shape[2] >= LEAST


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q kᵀ / √d + bias) v, by whichever kernel is the fastest for it, on any device.

    q (B, heads, n, d), k and v (B, heads, m, d) -> (B, heads, n, d). bias: of a shape that can be expanded to
    (B, heads, n, m); None adds nothing.
    """
    if bias is not None:
        bias = bias.to(q.dtype).expand(*q.shape[:3], k.shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    with_gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if has_faster_forward(q, k) or (with_gradient and has_faster_gradient(q, k)):
        return attend_with_normaliser(q, k, v)[0]
    if q.device.type == "cpu":  # whose kernel is up to a fifth slower on heads that lie between one another
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return F.scaled_dot_product_attention(q, k, v)


@torch.library.custom_op("dragsa::attend", mutates_args=())
def attend_with_normaliser(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / √d) v (B, heads, n, d), and log Σ exp(q kᵀ / √d) (B, heads, n) in float32."""
    if has_faster_forward(q, k) and _enough_heads(q):
        return _attend_by_products(q, k, v)
    out, log_sum = _pytorchs(q, k, v)
    return _by_tokens(q).copy_(out), log_sum.contiguous()


def _enough_heads(q: Tensor) -> bool:
    """Tell whether there is a head for each thread. PyTorch's kernels divide queries among threads, too."""
    return torch.get_num_threads() <= q.shape[0] * q.shape[1]


def _by_heads(work: Callable[[int, int], None], q: Tensor) -> None:
    """Calls `work(b, h)` for every head of q (B, heads, n, d), by as many threads as torch has."""
    heads, threads = itertools.product(range(q.shape[0]), range(q.shape[1])), torch.get_num_threads()

    def in_inference(head: tuple[int, int]) -> None:
        with torch.inference_mode():  # a thread's own, and without which nothing is written to tensors made in it
            work(*head)

    if threads == 1:
        for head in heads:
            work(*head)
    else:
        for _ in _pool(threads, os.getpid()).map(in_inference, heads):
            pass


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that compute with no more threads. `process`: whose they are; a fork has none of its parent's."""
    pool = ThreadPoolExecutor(threads, "attention", _begin_alone)
    barrier = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(barrier.wait)
    barrier.wait()
    torch.set_num_threads(threads)  # the number is also that of threads to come, which the pool's have changed
    return pool


def _begin_alone() -> None:
    torch.get_num_threads()  # the first look at it sets a thread's number, even where it has been set
    torch.set_num_threads(1)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attend_with_normaliser`, head by head, of which those that are not for products are left to PyTorch's kernel."""
    out, log_sum = _by_tokens(q), torch.empty(q.shape[:3])

    def attend_head(b: int, h: int) -> None:
        if not _attend_head(q[b, h], k[b, h], v[b, h], out[b, h], log_sum[b, h]):
            head = slice(b, b + 1), slice(h, h + 1)
            out[head], log_sum[head] = _pytorchs(q[head], k[head], v[head])

    _by_heads(attend_head, q)
    return out, log_sum


def _attend_head(q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor) -> bool:
    """One head, q (n, d), k and v (m, d), written into out (n, d) and log_sum (n,).

    False, and neither is of use, if queries' scores spread too widely or are further from where they were expected than
    exp2 reaches.
    """
    (n, d), m, scale = q.shape, len(k), q.shape[1] ** -0.5
    mean, deviation = _scores(q, k, scale)
    if deviation.mean() > SPREAD:
        return False
    centre = mean + deviation * deviation.clamp(max=_highest(m))
    shifted, keys, values = _beside(q, centre / scale), _beside_ones(k).t(), v.t().contiguous()
    rows, parts = max(1, min(n, WEIGHTS // m)), math.gcd(m, PARTS)
    held, summed = q.new_empty(rows, m), q.new_empty(d, n)
    for first in range(0, n, rows):
        some = slice(first, min(first + rows, n))
        p = held[: some.stop - first]
        torch.addmm(p, shifted[some], keys, beta=0, alpha=scale * _LOG2_E, out=p).exp2_()
        torch.sum(p.unflatten(1, (parts, -1)).sum(2), 1, dtype=torch.float32, out=log_sum[some])
        summed[:, some] = torch.mm(values, p.t())  # (d, rows); a product is faster along its long side
    out.copy_((summed / log_sum).t())
    log_sum.log_().add_(centre)
    return bool(log_sum.isfinite().all())


def _scores(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each query's scores, from those of the keys: (n,) each, of q (n, d) and k (m, d).

    Were the keys normally distributed, a query's scores s would be too, and those that it gives its weight to, which is
    as exp(s), would be about E s + Var s; or where that is more than any score, about the highest.
    """
    keys, queries = k.float(), scale * q.float()
    mean = keys.mean(0)
    apart = keys - mean
    covariance = apart.t() @ apart / len(keys)  # (d, d)
    return queries @ mean, ((queries @ covariance) * queries).sum(1).clamp(min=0).sqrt()


def _highest(count: int) -> float:
    """Estimate the highest of `count` normally distributed numbers, in deviations from the mean (Cramér 1946)."""
    far = math.sqrt(2 * math.log(count))
    return far - (math.log(math.log(count)) + math.log(4 * math.pi)) / (2 * far)


@torch.library.custom_op("dragsa::attend_backward", mutates_args=())
def attend_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, to_kv: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of attention in q, k and v; without `to_kv` those in k and v are empty.

    With P the weights and ∘ the product by elements (Dao et al. 2022, section 3.1),

        ∂V = Pᵀ ∂O,  ∂S = P ∘ (∂O Vᵀ - D),  D = rowsum(∂O ∘ O),  ∂Q = ∂S K / √d,  ∂K = ∂Sᵀ Q / √d.

    What is subtracted from a product row by row is a part of it, D as well as each query's log Σ exp, which makes of
    softmax an exponential. Logarithms of P are far from zero: by the entropy H of the weights (the mean of some
    queries) they are moved there, and exp(-H) is put back at the end. As P ≤ 1, what is exponentiated is at most H ≤
    log m.
    """
    to_q, to_k, to_v = _empty_gradients(q, k, v, to_kv)
    wanted = (to_q, to_k, to_v) if to_kv else (to_q,)
    if not _enough_heads(q):
        whole = _pytorchs_backward(gradient, q, k, v, out, log_sum, 0.0, False)
        for mine, theirs in zip(wanted, whole, strict=False):
            mine.copy_(theirs)
        return to_q, to_k, to_v

    def head_backward(b: int, h: int) -> None:
        into = [x[b, h] for x in wanted]
        _head_backward(gradient[b, h], q[b, h], k[b, h], v[b, h], out[b, h], log_sum[b, h], into)

    _by_heads(head_backward, q)
    return to_q, to_k, to_v


def _head_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, wanted: Sequence[Tensor]
) -> None:
    """One head, q (n, d), k and v (m, d), the gradients in q, or in all three, written into `wanted`."""
    (n, d), m, scale, (to_q, *to_kv) = q.shape, len(k), q.shape[1] ** -0.5, wanted
    keys = max(1, min(m, WEIGHTS // n))
    weights, products = (q.new_empty(n * keys) for _ in range(2))
    entropy = _entropy(q, k, log_sum, scale)
    back = math.exp(-entropy)
    shifted = _beside(q, (log_sum - entropy) / scale)
    towards = _beside(gradient, (gradient.float() * out.float()).sum(1))
    q_t, gradient_t, sum_q = q.t(), gradient.t(), torch.zeros(d, n)
    for first in range(0, m, keys):
        some = slice(first, min(first + keys, m))
        key, value = k[some], v[some]  # (c, d)
        p, s = (held[: n * len(key)].view(n, -1) for held in (weights, products))
        torch.addmm(p, shifted, _beside_ones(key).t(), beta=0, alpha=scale * _LOG2_E, out=p).exp2_()
        torch.mm(towards, _beside_ones(value).t(), out=s)
        if to_kv:
            to_kv[1][some] = torch.mm(gradient_t, p).mul_(back).t()
        s.mul_(p)
        sum_q += torch.mm(key.t(), s.t())  # (d, n), by its long side as above
        if to_kv:
            to_kv[0][some] = torch.mm(q_t, s).mul_(scale * back).t()
    to_q.copy_(sum_q.mul_(scale * back).t())


_LOG2_E = 1 / math.log(2)


def _entropy(q: Tensor, k: Tensor, log_sum: Tensor, scale: float) -> float:
    """The mean of -Σ P log P over a few of the queries: q (n, d), k (m, d), log_sum (n,)."""
    few = slice(None, None, max(1, len(q) // SAMPLE))
    log_p = scale * (q[few].float() @ k.float().t()) - log_sum[few, None]
    return -(log_p.exp() * log_p).sum(1).mean().item()


def _beside(rows: Tensor, subtracted: Tensor) -> Tensor:
    """(n, d), and two columns that take (n,) in float32 from the product with `_beside_ones`."""
    rounded = subtracted.to(rows.dtype)
    rest = (subtracted - rounded.float()).to(rows.dtype)
    return torch.cat([rows, -rounded[:, None], -rest[:, None]], dim=1)


def _beside_ones(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 2)], dim=1)


def _by_tokens(x: Tensor) -> Tensor:
    """An empty tensor (B, heads, n, d) whose tokens' heads lie side by side, as the layers round attention want it."""
    b, heads, n, d = x.shape
    return x.new_empty(b, n, heads, d).transpose(1, 2)


@attend_with_normaliser.register_fake
def _attend_shapes(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return _by_tokens(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@attend_backward.register_fake
def _attend_backward_shapes(_: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(q, k, v, to_kv=others[-1])


def _empty_gradients(q: Tensor, k: Tensor, v: Tensor, to_kv: bool) -> tuple[Tensor, Tensor, Tensor]:
    to_k, to_v = (_by_tokens(x if to_kv else x[:, :, :0]) for x in (k, v))
    return _by_tokens(q), to_k, to_v


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _gradient(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    to_kv = any(ctx.needs_input_grad[1:])
    to_q, to_k, to_v = attend_backward(gradient, *ctx.saved_tensors, to_kv)
    return (to_q, to_k, to_v) if to_kv else (to_q, None, None)


attend_with_normaliser.register_autograd(_gradient, setup_context=_keep)
