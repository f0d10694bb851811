"""A loaded model's values, types and devices, and pictures in and out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from loading_checks import holds
from PIL import Image

from dragsa import loading


def mappings(file: Path) -> list[range]:
    """Return the addresses at which the file is mapped into this process's memory."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(file.resolve()))]
    return [range(int(begin, 16), int(end, 16)) for begin, end in spans]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
def test_own_type_stays_mapped_and_another_is_converted(single):
    mapped = loading.load(single)
    spans = mappings(single)
    values = [*mapped.unet.parameters(), *mapped.vae.parameters(), *mapped.text.model.parameters()]
    assert all(any(value.data_ptr() in span for span in spans) for value in values)
    converted = loading.load(single, dtype=torch.bfloat16)
    spans = mappings(single)
    assert not any(value.data_ptr() in span for value in converted.unet.parameters() for span in spans)
    holds(converted, torch.bfloat16)


def test_changing_a_loaded_value_leaves_the_file_alone(single):
    before = hashlib.sha256(single.read_bytes()).hexdigest()
    with torch.no_grad():
        loading.load(single).unet.conv_in.weight.zero_()
    assert hashlib.sha256(single.read_bytes()).hexdigest() == before
    holds(loading.load(single))


def test_encode_and_decode(folder):
    sd = loading.load(folder)
    noise = torch.randint(0, 256, (24, 40, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy())
    tensor = noise.permute(2, 0, 1)[None] / 127.5 - 1
    z = sd.encode(picture)
    assert z.shape == (1, 4, 3, 5) and z.dtype == torch.float32
    torch.testing.assert_close(z, sd.encode(tensor), rtol=0, atol=1e-6)
    torch.testing.assert_close(z, 0.18215 * sd.vae.encode_moments(tensor)[0])
    decoded = sd.decode(z)
    assert decoded.shape == (1, 3, 24, 40) and decoded.dtype == torch.float32
    assert torch.equal(decoded, sd.decode(z))
    assert not z.requires_grad and not decoded.requires_grad
    for wrong in (Image.new("RGB", (60, 64)), torch.zeros(1, 3, 64, 60), torch.zeros(3, 64, 64)):
        with pytest.raises(ValueError, match="multiples of 8"):
            sd.encode(wrong)
    with pytest.raises(ValueError, match="float"):
        sd.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"encode takes a picture .* or a tensor .*, came str"):
        sd.encode("disc.png")  # type: ignore[arg-type]


def test_results_are_float32_whatever_the_weights(folder):
    sd = loading.load(folder, dtype=torch.bfloat16)
    z = sd.encode(torch.zeros(1, 3, 16, 16))
    assert z.dtype == sd.decode(z).dtype == sd.embed(["red"]).dtype == torch.float32


def test_what_cannot_be_used(folder):
    with pytest.raises(ValueError, match="int8"):
        loading.load(folder, dtype=torch.int8)
    for device in ("cuda:99", "abacus"):
        with pytest.raises(ValueError, match="cannot be used"):
            loading.load(folder, device=device)
