"""Attention on the CPU and its gradient against PyTorch's, in the type where they are used, and exactly in float32."""

import threading

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dragsa.kernels import cpu_attention

SHAPES = [(1, 2, 64, 64, 8), (2, 3, 37, 53, 5), (1, 1, 70, 7, 16), (1, 2, 5, 90, 4), (1, 1, 1, 1, 1)]


def drawn(shape, dtype=torch.bfloat16, sharpness=1.0) -> list[Tensor]:
    b, heads, n, m, d = shape
    generator = torch.Generator().manual_seed(0)
    q, k, v, gradient = (torch.randn(b, heads, size, d, generator=generator) for size in (n, m, m, n))
    return [x.to(dtype) for x in (sharpness * q, k, v, gradient)]


def by_products(q, k, v):
    return cpu_attention.attend_with_normaliser(q, k, v)[0]


def gradients(attend, inputs, wanted=(True, True, True)):
    q, k, v, gradient = inputs
    leaves = [x.detach().requires_grad_(want) for x, want in zip((q, k, v), wanted, strict=True)]
    out = attend(*leaves)
    return out.detach(), torch.autograd.grad(out, [x for x in leaves if x.requires_grad], gradient)


def error(came, exact):
    return ((came.double() - exact).norm() / exact.norm()).item()


@pytest.fixture
def few_at_a_time(monkeypatch):
    """Keys in several pieces, of which the last is shorter."""
    monkeypatch.setattr(cpu_attention, "WEIGHTS", 1000)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[3] > 1])
def test_in_float32_the_products_are_exact(shape, few_at_a_time):
    q, k, v, _ = drawn(shape, torch.float32)
    k, v = k + 1, v + 1  # queries' scores are about numbers of their own
    out, log_sum = cpu_attention._attend_by_products(q, k, v)
    scores = q.double() @ k.double().mT / q.shape[3] ** 0.5
    assert error(out, scores.softmax(dim=3) @ v.double()) < 1e-6
    assert (log_sum - scores.logsumexp(dim=3)).abs().max() < 1e-5


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 2.0, 4.0])
def test_in_bfloat16_the_products_round_as_little_as_they_can(sharpness):
    q, k, v, _ = drawn((1, 2, 512, 2048, 40), sharpness=sharpness)
    right = F.scaled_dot_product_attention(q.double(), (k + 1).double(), v.double())
    ours, theirs = by_products(q, k + 1, v), F.scaled_dot_product_attention(q, k + 1, v)
    assert not torch.equal(ours, theirs)
    assert error(ours, right) < 3 * error(theirs, right)


def test_where_the_products_would_not_do_a_head_is_pytorchs():
    q, k, v, _ = drawn((1, 4, 512, 2048, 40))
    q[:, 0] *= 30  # few keys matter to a query
    q[:, 1] = torch.eye(40)[0] * 40**0.5
    k[:, 1, 7, 0] = 300  # one score, by hundreds higher than the highest of so many is expected to be
    q[:, 2, 0] = 100 * torch.eye(40)[0] * 40**0.5
    k[:, 2, :, 0] = k[:, 2, :, 0].sign()  # one query, whose highest scores are by hundreds lower
    out, log_sum = cpu_attention.attend_with_normaliser(q, k, v)
    theirs, their_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    same = [torch.equal(out[:, h], theirs[:, h]) and torch.equal(log_sum[:, h], their_sum[:, h]) for h in range(4)]
    assert same == [True, True, True, False] and log_sum.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_it_is_the_exact_gradient(shape, few_at_a_time):
    inputs = drawn(shape, torch.float32)
    out, came = gradients(by_products, inputs)
    exact_out, exact = gradients(F.scaled_dot_product_attention, [x.double() for x in inputs])
    assert error(out, exact_out) < 1e-6
    for one, other in zip(came, exact, strict=True):
        assert (one.double() - other).norm() < 1e-5 * max(other.norm(), 1.0)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("shape", [(1, 2, 512, 512, 40), (2, 1, 300, 77, 80)])
def test_in_bfloat16_it_is_about_as_exact_as_pytorchs(shape, sharpness):
    inputs = drawn(shape, sharpness=sharpness)
    _, exact = gradients(F.scaled_dot_product_attention, [x.double() for x in inputs])
    _, theirs = gradients(F.scaled_dot_product_attention, inputs)
    _, ours = gradients(by_products, inputs)
    for came, other, right in zip(ours, theirs, exact, strict=True):
        assert error(came, right) < 2 * error(other, right) + 1e-3


def test_scores_far_from_zero_overflow_nothing(few_at_a_time):
    q, k, v, gradient = drawn((1, 2, 64, 64, 8))
    q, k = q + 40, k + 40  # scores about 4500, that differ by some tens
    _, exact = gradients(F.scaled_dot_product_attention, [x.double() for x in (q, k, v, gradient)])
    _, ours = gradients(by_products, [q, k, v, gradient])
    for came, right in zip(ours, exact, strict=True):
        assert came.isfinite().all() and came.float().norm() < 2 * right.norm()


def test_of_the_query_alone():
    inputs = drawn((1, 2, 60, 11, 8))
    _, (alone,) = gradients(by_products, inputs, wanted=(True, False, False))
    _, (to_q, _, _) = gradients(by_products, inputs)
    assert torch.equal(alone, to_q)
    _, (value,) = gradients(by_products, inputs, wanted=(False, False, True))
    assert value.shape == inputs[2].shape


def test_heads_that_lie_between_one_another(few_at_a_time):
    inputs = drawn((2, 3, 37, 53, 8))
    apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    assert not apart[0].is_contiguous()
    _, came = gradients(by_products, apart)
    _, expected = gradients(by_products, inputs)
    for one, other in zip(came, expected, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-2)


@pytest.fixture
def threads():
    """Sets how many threads torch has, for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_threads_share_the_heads_and_change_no_number(threads, few_at_a_time, monkeypatch):
    monkeypatch.setattr(cpu_attention, "LEAST_FORWARD", (1, 1))
    inputs, names = drawn((2, 3, 300, 64, 8)), set()
    head, backward = cpu_attention._attend_head, cpu_attention._head_backward

    def noted(function):
        def note(*args):
            names.add((threading.current_thread().name, torch.get_num_threads()))
            return function(*args)

        return note

    monkeypatch.setattr(cpu_attention, "_attend_head", noted(head))
    monkeypatch.setattr(cpu_attention, "_head_backward", noted(backward))
    threads(1)
    expected = gradients(by_products, inputs)
    assert names == {(threading.current_thread().name, 1)}
    names.clear()
    threads(3)
    out, came = gradients(by_products, inputs)
    assert {count for _, count in names} == {1} and threading.current_thread().name not in {name for name, _ in names}
    assert torch.get_num_threads() == 3
    alone = threading.Thread(target=lambda: names.add(("after", torch.get_num_threads())))
    alone.start()
    alone.join()
    assert ("after", 3) in names  # what the pool's threads have is theirs alone
    for one, other in zip((out, *came), (expected[0], *expected[1]), strict=True):
        assert torch.equal(one, other)


def test_threads_work_on_tensors_of_inference(threads, monkeypatch):
    monkeypatch.setattr(cpu_attention, "LEAST_FORWARD", (1, 1))
    threads(2)
    with torch.inference_mode():
        q, k, v, _ = drawn((1, 2, 64, 48, 8))
        out = by_products(q, k, v)
    assert error(out, F.scaled_dot_product_attention(q.double(), k.double(), v.double())) < 0.01


def test_with_more_threads_than_heads_it_is_pytorchs(threads, monkeypatch):
    monkeypatch.setattr(cpu_attention, "LEAST_FORWARD", (1, 1))
    inputs = drawn((1, 2, 64, 64, 8))
    threads(3)
    for wanted in ((True, True, True), (True, False, False)):
        out, came = gradients(by_products, inputs, wanted=wanted)
        expected_out, expected = gradients(F.scaled_dot_product_attention, inputs, wanted=wanted)
        for one, other in zip((out, *came), (expected_out, *expected), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(("heads", "threaded"), [(2, 1), (2, 2), (2, 3)])
def test_the_operators_are_what_tracing_takes_them_for(heads, threaded, threads, monkeypatch):
    monkeypatch.setattr(cpu_attention, "LEAST_FORWARD", (1, 1))
    threads(threaded)
    q, k, v, gradient = drawn((1, heads, 20, 12, 8))
    torch.library.opcheck(cpu_attention.attend_with_normaliser, (q, k, v))
    out, log_sum = cpu_attention.attend_with_normaliser(q, k, v)
    for to_kv in (False, True):
        torch.library.opcheck(cpu_attention.attend_backward, (gradient, q, k, v, out, log_sum, to_kv))


def test_a_layer_takes_it_where_it_is_faster_and_a_gradient_is_wanted(monkeypatch):
    taken = []

    def noted(q, k, v):
        taken.append(q)
        return q, None

    monkeypatch.setattr(cpu_attention, "attend_with_normaliser", noted)
    q = torch.zeros(1, 1, 512, 4, dtype=torch.bfloat16)
    wanting = q.clone().requires_grad_()
    cpu_attention.attend(q, q, q)
    with torch.no_grad():
        cpu_attention.attend(wanting, q, q)
    for other in (wanting.float(), wanting[:, :, :500]):
        cpu_attention.attend(other, other, other)
    assert not taken
    cpu_attention.attend(wanting, q, q), cpu_attention.attend(q, wanting, q)
    assert len(taken) == 2
    many = torch.zeros(1, 1, 2048, 4, dtype=torch.bfloat16)
    cpu_attention.attend(many, many, many)  # so many that it is faster without a gradient, too
    cpu_attention.attend(many, many[:, :, :1000], many[:, :, :1000]), cpu_attention.attend(*3 * [many.float()])
    assert len(taken) == 3


def test_compiled_it_is_one_graph_with_the_same_gradient(monkeypatch):
    monkeypatch.setattr(cpu_attention, "LEAST", 1)
    inputs = drawn((1, 2, 32, 24, 8))
    torch._dynamo.reset()
    compiled = torch.compile(cpu_attention.attend, fullgraph=True, backend="aot_eager")
    out, came = gradients(compiled, inputs)
    expected_out, expected = gradients(cpu_attention.attend, inputs)
    assert torch.equal(out, expected_out)
    for one, other in zip(came, expected, strict=True):
        assert torch.equal(one, other)
