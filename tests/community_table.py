"""Weights as people have them, a table: a row a kind of files, and what this program and diffusers make of the same.

python tests/community_table.py            # all kinds, some minutes
python tests/community_table.py A.2 B.2    # some of them, each case on a line of its own

Tiny files of each kind are written, and loaded by both. What is compared is the noise prediction, the noise schedule, a
prompt's context and a decoded latent, with networks that diffusers' classes make of the very tensors, within 1e-4 of
the largest value. Right is: those numbers, or where there are none to be had (or the README says that it is not run) a
refusal in one line. No network, no part of the tests.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported

import diffusers
import tiny_models
import torch
import transformers
from methods import test_lora_layouts as spellings
from safetensors.torch import save_file
from tiny_loras import drawn
from torch import Tensor

from dragsa import loading, methods
from dragsa.loading import names
from dragsa.loading.tokenizer import load_tokenizer
from dragsa.model.unet import training_alpha_bars

State = dict[str, Tensor]
Numbers = dict[str, Tensor]
PROMPT = "a red cat"
Z, T, CONTEXT = drawn(1, 2, 4, 8, 8), torch.tensor([41, 801]), drawn(2, 2, 9, 48)
LATENT = drawn(3, 1, 4, 8, 8) * 0.18215
SD15 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
SCHEDULER = {"_class_name": "DDIMScheduler", **SD15, "clip_sample": False, "steps_offset": 1}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
}
TOKENIZER = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tiny_models.TOKENS}
TOKENIZER |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
DIFFUSERS = diffusers.StableDiffusionPipeline


# --- numbers


def unet_state() -> State:
    return dict(tiny_models.unet_state())


def vae_state() -> State:
    return dict(tiny_models.vae_state())


def text_state() -> State:
    return {name: value for name, value in tiny_models.text_state().items() if "position_ids" not in name}


@dataclass(eq=False)
class Truth:
    """What a model is, from which diffusers' own classes compute its numbers."""

    unet: State = field(default_factory=unet_state)
    vae: State = field(default_factory=vae_state)
    text: State = field(default_factory=text_state)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    layers: int = 2
    vocabulary: int = len(tiny_models.VOCABULARY)

    def pipeline(self) -> Any:
        unet: Any = diffusers.UNet2DConditionModel(
            **{k: v for k, v in tiny_models.UNET_SETTINGS.items() if k[0] != "_"}
        )
        unet.load_state_dict(self.unet)
        vae: Any = diffusers.AutoencoderKL(**{k: v for k, v in tiny_models.VAE_SETTINGS.items() if k[0] != "_"})
        vae.load_state_dict(self.vae)
        settings = tiny_models.TEXT_SETTINGS | {"num_hidden_layers": self.layers, "vocab_size": self.vocabulary}
        encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings))
        encoder_names = {name.removeprefix("text_model."): name for name in encoder.state_dict()}
        encoder.load_state_dict({encoder_names[name]: value for name, value in self.text.items()}, strict=False)
        return DIFFUSERS(
            unet=unet.eval(), vae=vae.eval(), text_encoder=encoder.eval(), tokenizer=tokenizer(),
            scheduler=diffusers.DDIMScheduler(**{**SD15, "clip_sample": False, **self.scheduler}),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip


def tokenizer() -> Any:
    made = load_tokenizer(whole_folder() / "tokenizer")
    made.model_max_length = tiny_models.TOKENS
    return made


@torch.no_grad()
def numbers_of_diffusers(pipe: Any, prompt: str, skip: int) -> Numbers:
    out, bars = pipe.unet(Z, T, CONTEXT).sample, pipe.scheduler.alphas_cumprod
    if pipe.scheduler.config.prediction_type == "v_prediction":
        bar = bars[T][:, None, None, None]
        out = bar.sqrt() * out + (1 - bar).sqrt() * Z
    context = pipe.encode_prompt(prompt, "cpu", 1, False, clip_skip=None if skip == 1 else skip - 1)[0]
    picture = pipe.vae.decode(LATENT / pipe.vae.config.scaling_factor).sample
    return {"noise": out, "schedule": bars.double(), "context": context, "picture": picture}


@torch.no_grad()
def numbers_of_ours(sd: loading.StableDiffusion, prompt: str) -> Numbers:
    sd.check_finite()
    context, picture = sd.embed([prompt]), sd.decode(LATENT)
    return {"noise": sd.unet(Z, T, CONTEXT).eps, "schedule": training_alpha_bars(), "context": context,
            "picture": picture}  # fmt: skip


def differing(came: Numbers, expected: Numbers | None) -> str:
    """Name what differs by more than 1e-4 of the largest value; nothing where all is the same."""
    if expected is None:
        return "numbers, and there are none to be had"
    odd = []
    for name, value in expected.items():
        same = came[name].shape == value.shape
        if not same or not (came[name].float() - value.float()).abs().max() < 1e-4 * value.abs().max():
            odd.append(name)
    return ", ".join(odd)


# --- cases


@dataclass
class Case:
    """A file or folder, how both programs load it, and what is right."""

    what: str
    path: Path
    truth: Truth | None = field(default_factory=lambda: PLAIN)  # None: there is no right number
    refused: str | None = None  # a word of the refusal that is right here
    options: dict[str, Any] = field(default_factory=dict)  # of `load`
    then: Callable[[loading.StableDiffusion], loading.StableDiffusion] = lambda sd: sd
    theirs: Callable[[Path], Any] | None = None  # None: from the file or folder alone
    then_theirs: Callable[[Any], object] = lambda pipe: None
    prompt: str = PROMPT
    skip: int = 1
    expected: Numbers | None = None  # instead of a truth's


@cache
def numbers_of(truth: Truth, prompt: str = PROMPT, skip: int = 1) -> Numbers:
    pipe = truth.pipeline()
    ids = pipe.tokenizer(prompt, padding="max_length", truncation=True, max_length=tiny_models.TOKENS)["input_ids"]
    return {**numbers_of_diffusers(pipe, prompt, 1), "context": context_of(pipe.text_encoder, ids, skip)}


@torch.no_grad()
def context_of(encoder: Any, ids: list[int], skip: int) -> Tensor:
    """The hidden state behind the layer, 1 for the last, and then the final norm."""
    states = encoder(torch.tensor([ids]), output_hidden_states=True).hidden_states[-skip]
    norm = next(module for name, module in encoder.named_modules() if name.endswith("final_layer_norm"))
    return norm(states)


def expected_of(case: Case) -> Numbers | None:
    if case.expected is not None or case.truth is None:
        return case.expected
    return numbers_of(case.truth, case.prompt, case.skip)


PLAIN: Truth = Truth()


def load_theirs(path: Path, **given: Any) -> Any:
    """Load as diffusers' users do; a single file's settings are those of SD 1.5's folder, here the tiny one's."""
    given = {"safety_checker": None, "local_files_only": True, **given}
    if path.is_dir():
        return DIFFUSERS.from_pretrained(path, **given)
    return DIFFUSERS.from_single_file(str(path), **{"config": str(whole_folder()), **given})


def outcome_of_ours(case: Case, expected: Numbers | None) -> tuple[bool, str]:
    """Tell if what this program does is right, and say it."""
    try:
        sd = case.then(loading.load(case.path, **case.options))
        odd = differing(numbers_of_ours(sd, case.prompt), expected)
        return not odd and case.refused is None, f"other {odd}" if odd else "same"
    except loading.WeightsError as error:
        message = str(error)
        right = case.refused is not None and case.refused in message and "\n" not in message
        return right, f"refused: {message.replace(str(ROOM), '')}"
    except Exception as error:
        return False, f"TRACEBACK {type(error).__name__}: {' '.join(str(error).split())[:150]}"


def outcome_of_theirs(case: Case, expected: Numbers | None) -> str:
    try:
        pipe = (case.theirs or load_theirs)(case.path)
        case.then_theirs(pipe)
        odd = differing(numbers_of_diffusers(pipe, case.prompt, case.skip), expected)
        return f"other {odd}" if odd else "same"
    except Exception as error:
        return f"fails: {type(error).__name__}: {' '.join(str(error).split())[:150]}"


# --- files

ROOM = Path(tempfile.mkdtemp(prefix="community-"))
COUNT = iter(range(10**6))


def fresh() -> Path:
    folder = ROOM / str(next(COUNT))
    folder.mkdir()
    return folder


@cache
def whole_folder() -> Path:
    return write_whole(ROOM / "whole")


def write_whole(folder: Path, variant: str = "", dtype: torch.dtype = torch.float32) -> Path:
    """A model's folder with all that diffusers asks for."""
    tiny_models.write_folder(folder, dtype, variant)
    for name, value in {
        "model_index.json": INDEX,
        "scheduler/scheduler_config.json": SCHEDULER,
        "tokenizer/tokenizer_config.json": TOKENIZER,
    }.items():
        tiny_models.write_json(folder / name, value)
    return folder


def single(state: State | None = None, words: dict[str, str] | None = None, yaml: str | bytes = "") -> Path:
    """A single file of these tensors, with a tokenizer beside it."""
    folder = fresh()
    save_file(
        single_state() if state is None else state, folder / "model.safetensors", {"format": "pt", **(words or {})}
    )
    shutil.copytree(whole_folder() / "tokenizer", folder / "tokenizer")
    if yaml:
        (folder / "model.yaml").write_bytes(yaml if isinstance(yaml, bytes) else yaml.encode())
    return folder / "model.safetensors"


def single_state(ema: bool = False) -> State:
    return {name: value.clone() for name, value in tiny_models.single_file_state(ema).items()}


def more(**tensors: Tensor) -> State:
    return single_state() | tensors


def changed(edit: Callable[[Path], object], variant: str = "", dtype: torch.dtype = torch.float32) -> Path:
    """A folder that something is done to."""
    folder = write_whole(fresh() / "model", variant, dtype)
    edit(folder)
    return folder


def rewritten(file: str, **settings: Any) -> Path:
    """A folder with a settings file of which some are others; ... leaves one out."""

    def edit(folder: Path) -> None:
        own = json.loads((folder / file).read_text()) | settings
        tiny_models.write_json(folder / file, {key: value for key, value in own.items() if value is not ...})

    return changed(edit)


def to_single(component: str, state: State) -> State:
    return {names.to_single_file(component, name): value for name, value in state.items()}


def doubled(state: State) -> State:
    return {name: 1.1 * value for name, value in state.items()}


# --- A: wrong in silence elsewhere


def stale_ema() -> Iterator[Case]:
    """A.1 two copies of the UNet"""
    both, other = single_state(ema=True), Truth(tiny_models.unet_state(seed=4))
    ema = [name for name in both if name.startswith("model_ema.diffusion_model")]
    plain = [name for name in both if name.startswith("model.diffusion_model")]
    of_ema: dict[str, Any] = {"theirs": lambda path: load_theirs(path, extract_ema=True)}
    yield Case("whole, of another model", single(both))
    yield Case("whole, asked for", single(both), other, options={"ema": True}, **of_ema)
    yield Case("whole, asked not to", single(both), options={"ema": False})
    for what, lost in (("one lacking", ema[:1]), ("half", ema[::2]), ("all but one lacking", ema[1:])):
        state = {name: value for name, value in both.items() if name not in lost}
        yield Case(f"partial, {what}", single(state))
        yield Case(f"partial, {what}, asked for", single(state), None, "missing", {"ema": True}, **of_ema)
    yield Case("only", single({name: value for name, value in both.items() if name not in plain}), other)
    state = {name: value for name, value in both.items() if name not in plain[:1]}
    yield Case("the plain copy lacks one", single(state), None, "1 missing")
    yield Case("the counters alone", single())
    yield Case("none, asked for", single(), None, "holds no EMA copy", {"ema": True}, **of_ema)
    yield Case("a copy of what the plain one lacks", single(both | {"model_ema.diffusion_modelmore": torch.ones(1)}))
    yield Case("in half, of a whole file", single({n: v.half() if n in ema else v for n, v in both.items()}))
    nan = both | {ema[5]: torch.full_like(both[ema[5]], torch.nan)}
    yield Case("NaN in the copy not taken", single(nan))
    yield Case("of a folder, asked for", write_whole(fresh() / "model"), None, "holds one copy", {"ema": True})


V = Truth(scheduler={"prediction_type": "v_prediction"})
YAML = """model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    scale_factor: 0.18215
"""


def v_prediction() -> Iterator[Case]:
    """A.2 v-prediction"""
    told: dict[str, Any] = {
        "quoted": YAML,
        "bare": YAML.replace('"', ""),
        "single quotes": YAML.replace('"', "'"),
        "Windows' lines": YAML.replace("\n", "\r\n"),
        "with a comment": YAML.replace('"v"', '"v"  # eps before'),
        "in one line": 'model: {params: {parameterization: "v", linear_start: 0.00085, timesteps: 1000}}\n',
        "in one line, first": "{parameterization: v}\n",
        "a key in quotes": '"parameterization" : "v"\n',
        "with a mark of UTF-8": "\ufeffparameterization: v\n",
        "in UTF-16": YAML.encode("utf-16"),
        "a value on the next line": 'parameterization:\n  "v"\n',
    }
    for what, yaml in told.items():
        yield Case(f"yaml, {what}", single(yaml=yaml), V)
    for what, yaml in {
        "eps": YAML.replace('"v"', '"eps"'),
        "v in a comment": YAML.replace("    param", "    # param"),
        "nothing of it": YAML.replace('    parameterization: "v"\n', ""),
        "another key that ends so": YAML.replace("    parameterization", "    my_parameterization"),
    }.items():
        yield Case(f"yaml, {what}", single(yaml=yaml))
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        for word in ("v", "V", " v ", "v_prediction", "V-Prediction", "vpred"):
            yield Case(f"{key} {word!r}", single(words={key: word}), V)
        for word in ("epsilon", "Epsilon", "eps", "EPS", ""):
            yield Case(f"{key} {word!r}", single(words={key: word}))
        for word in ("x0", "sample", "rectified flow", "none"):
            yield Case(f"{key} {word!r}", single(words={key: word}), None, "this model predicts")
    yield Case("MODELSPEC in capitals", single(words={"MODELSPEC.PREDICTION_TYPE": "v"}), V)
    yield Case("marker", single(more(v_pred=torch.tensor([]))), V)
    yield Case("marker with a value", single(more(v_pred=torch.ones(1))), V)
    yield Case("marker and yaml", single(more(v_pred=torch.tensor([])), yaml=YAML), V)
    zero = Truth(scheduler={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    both = more(v_pred=torch.tensor([]), ztsnr=torch.tensor([]))
    yield Case("markers, zero SNR", single(both), zero, "zero terminal SNR")
    yield Case("marker, and words of ε", single(more(v_pred=torch.tensor([])), {"modelspec.prediction_type": "eps"}),
               None, "said in two ways")  # fmt: skip
    yield Case("folder", rewritten("scheduler/scheduler_config.json", prediction_type="v_prediction"), V)
    yield Case("folder of ε", rewritten("scheduler/scheduler_config.json", prediction_type="epsilon"))
    yield Case("folder of x0", rewritten("scheduler/scheduler_config.json", prediction_type="sample"), None, "predicts")
    yield Case("folder, null", rewritten("scheduler/scheduler_config.json", prediction_type=None), None, "is null")
    for name in ("EulerDiscreteScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"):
        path = rewritten("scheduler/scheduler_config.json", prediction_type="v_prediction", _class_name=name)
        yield Case(f"folder, {name}", path, V)


def by_patterns() -> Iterator[Case]:
    """A.3 PEFT's patterns of α and rank"""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    targets = ["to_q", "to_v", "to_out.0", "net.0.proj", "net.2", "proj_in", "proj_out", "conv1"]
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    for settings in (
        {"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 1, r"mid_block\..*conv\d": 2, "net.0.proj": 16}},
        {"r": 8, "lora_alpha": 4, "rank_pattern": {r".*to_(q|v)": 2, "proj_in": 3}},
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"to_q": 2}, "alpha_pattern": {r"attn\d\.to_[qv]": 3}},
        {"r": 4, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"^to_q": 1, "o_v": 100}},
        {"r": 4, "lora_alpha": 4, "alpha_pattern": {layer: 40}},
        {"r": 4, "lora_alpha": 4, "alpha_pattern": {"attn1.to_q": 1, "to_q|to_v": 12}},
        {"r": 4, "lora_alpha": 4, "alpha_pattern": {"attn1.to_q": 12, "to_q": 1}},
        {"r": 4, "lora_alpha": 4, "alpha_pattern": {f"^{layer}$": 12}},
        {"r": 1, "lora_alpha": 0.5, "rank_pattern": {"down_blocks.*": 3}, "alpha_pattern": {"TO_Q": 12}},
        {"r": 2, "lora_alpha": 16},
        {"r": 4, "lora_alpha": 8, "alpha_pattern": {r"attn2\.to_q": -8, "conv1": 0}},
    ):
        pipe, folder = PLAIN.pipeline(), fresh()
        config = LoraConfig(**settings, target_modules=targets)
        pipe.unet.add_adapter(config)
        for name, parameter in pipe.unet.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.1 * drawn(len(name), *parameter.shape)
        expected = numbers_of_diffusers(pipe, PROMPT, 1)
        state = get_peft_model_state_dict(pipe.unet)
        told = {**config.to_dict(), "target_modules": targets}
        pipe.save_lora_weights(folder, state, weight_name="theirs.safetensors", unet_lora_adapter_metadata=told)
        save_file({f"base_model.model.{n}": v for n, v in state.items()}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config.to_dict(), default=list))
        said = json.dumps({key: value for key, value in settings.items() if key not in ("r", "lora_alpha")})
        for name in ("theirs", "adapter_model"):
            yield with_lora(f"{name} {said}", folder / f"{name}.safetensors", expected=expected)


def schedules() -> Iterator[Case]:
    """A.4 other noise schedules"""
    file, other = "scheduler/scheduler_config.json", "another noise schedule"
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    linear = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = torch.cumprod(1 - beta, dim=0)
    root = bars.sqrt()
    rescaled = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    for value in (False, None, ...):
        yield Case(f"rescale {value}", rewritten(file, rescale_betas_zero_snr=value))
        yield Case(f"trained_betas {value}", rewritten(file, trained_betas=None if value is False else value))
    yield Case("rescale true", rewritten(file, rescale_betas_zero_snr=True),
               Truth(scheduler={"rescale_betas_zero_snr": True}), other)  # fmt: skip
    yield Case("SD 1.5's as trained_betas", rewritten(file, trained_betas=beta.tolist()))
    others: dict[str, dict[str, Any]] = {
        "trained_betas": {"trained_betas": linear.tolist()},
        "500 trained_betas": {"trained_betas": beta[::2].tolist()},
        "beta_start": {"beta_start": 0.0001},
        "beta_end": {"beta_end": 0.02},
        "linear": {"beta_schedule": "linear"},
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
        "500 steps": {"num_train_timesteps": 500},
    }
    for what, settings in others.items():
        truth = None if what.startswith("500") else Truth(scheduler=settings)
        yield Case(f"folder, {what}", rewritten(file, **settings), truth, "schedule")
    flows: dict[str, dict[str, Any]] = {
        "a flow's scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        "flow's sigmas": {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True},
        "a flow's prediction": {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"},
    }
    for what, settings in flows.items():
        yield Case(f"folder, {what}", rewritten(file, **settings), None, "flow")
    alike: dict[str, dict[str, Any]] = {
        "other classes": {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
        "karras": {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True},
        "an offset": {"steps_offset": 0, "set_alpha_to_one": True, "timestep_spacing": "trailing"},
    }
    for what, settings in alike.items():
        yield Case(f"folder, {what}", rewritten(file, **settings))
    yield Case("no scheduler", changed(lambda folder: shutil.rmtree(folder / "scheduler")))
    for what, tensor in {"rescaled": rescaled, "linear": torch.cumprod(1 - linear, 0), "half": bars.half(),
                         "bfloat16": bars.bfloat16(), "float64": bars, "shorter": bars[:500]}.items():  # fmt: skip
        same = what in ("half", "bfloat16", "float64")
        own = Truth(scheduler={"trained_betas": linear.tolist()}) if what == "linear" else None
        own = Truth(scheduler={"rescale_betas_zero_snr": True}) if what == "rescaled" else own
        yield Case(f"file, ᾱ {what}", single(more(alphas_cumprod=tensor.contiguous())), PLAIN if same else own,
                   None if same else other)  # fmt: skip
    yield Case(
        "file, betas linear", single(more(betas=linear)), Truth(scheduler={"trained_betas": linear.tolist()}), other
    )
    without = {n: v for n, v in single_state().items() if n not in names.BOOKKEEPING}
    yield Case("file, no schedule", single(without))
    yield Case("yaml, linear_end 0.02", single(yaml=YAML.replace("0.0120", "0.02").replace('"v"', "eps")), None, other)
    yield Case("yaml in one line, linear_end 0.02", single(yaml="{timesteps: 1000, linear_end: 0.02}"), None, other)
    yield Case("denoiser.sigmas", single(more(**{"denoiser.sigmas": ((1 - bars) / bars).sqrt().float()})))
    zero = ((1 - rescaled) / rescaled.clamp(min=4.8973e-08)).sqrt().float()
    yield Case("denoiser.sigmas, rescaled", single(without | {"denoiser.sigmas": zero}), None, other)


def cut_encoders() -> Iterator[Case]:
    """A.5 a text encoder that lacks layers"""
    own = text_state()

    def stacked(layers: list[int]) -> State:
        state = {name: value for name, value in single_state().items() if "encoder.layers." not in name}
        for n in layers:
            for name, value in own.items():
                if "encoder.layers.1." in name:
                    state[names.to_single_file("text_encoder", name.replace("layers.1.", f"layers.{n}."))] = value + n
        return state

    def of(layers: int) -> Truth:
        state = {n: v for n, v in own.items() if "encoder.layers." not in n}
        for n in range(layers):
            state |= {k.replace("layers.1.", f"layers.{n}."): v + n for k, v in own.items() if "encoder.layers.1." in k}
        return Truth(text=state, layers=layers)

    def twelve(path: Path) -> Any:
        folder = rewritten("text_encoder/config.json", num_hidden_layers=12)
        return load_theirs(path, config=str(folder))

    yield Case("12 of 12", single(stacked([*range(12)])), of(12), theirs=twelve)
    for lost in ([11], [10, 11], [*range(6, 12)], [0], [5]):
        kept = [n for n in range(12) if n not in lost]
        yield Case(f"without {lost}", single(stacked(kept)), None, "missing", theirs=twelve)
    yield Case("13", single(stacked([*range(13)])), None, "left over", theirs=twelve)
    yield Case("1 of the small model's 2", single(stacked([0])), None, "missing")

    def without(mark: str) -> Callable[[Path], object]:
        def edit(folder: Path) -> None:
            kept = {f"text_model.{name}": value for name, value in own.items() if mark not in name}
            save_file(kept, folder / "text_encoder/model.safetensors", {"format": "pt"})

        return edit

    yield Case("folder, 1 of 2", changed(without("layers.1.")), None, "missing")
    yield Case("folder, without the final norm", changed(without("final_layer_norm")), None, "missing")
    yield Case("folder, without one bias", changed(without("layers.0.mlp.fc1.bias")), None, "1 missing")
    one = Truth(text={n: v for n, v in own.items() if "layers.1." not in n}, layers=1)
    yield Case("folder whose settings have 1", rewritten("text_encoder/config.json", num_hidden_layers=1), one)
    yield Case(
        "folder whose settings have 3", rewritten("text_encoder/config.json", num_hidden_layers=3), None, "missing"
    )


def null_and_nan() -> Iterator[Case]:
    """A.6 null scaling; NaN"""
    yield Case("scaling null", rewritten("vae/config.json", scaling_factor=None))
    for value in (0, -1, "wide", True, [0.18215]):
        yield Case(f"scaling {value!r}", rewritten("vae/config.json", scaling_factor=value), None, "scaling_factor")
    yield Case("no scaling", rewritten("vae/config.json", scaling_factor=...))
    yield Case("shift null", rewritten("vae/config.json", shift_factor=None, latents_mean=None, latents_std=None))
    yield Case("a shift", rewritten("vae/config.json", shift_factor=0.1), None, "shift_factor")
    state = single_state()
    for name in ("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.bias",
                 "first_stage_model.decoder.conv_out.bias", "first_stage_model.encoder.conv_in.weight",
                 "first_stage_model.quant_conv.bias", "cond_stage_model.transformer.text_model.final_layer_norm.bias",
                 "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"):  # fmt: skip
        for odd in (torch.nan, torch.inf, -torch.inf):
            broken = state[name].clone()
            broken.view(-1)[-1] = odd
            yield Case(f"{odd} in {name}", single(state | {name: broken}), None, "NaN or infinite")
    for name in ("cond_stage_model.logit_scale", "global_step", "model_ema.decay", "first_stage_model.loss.logvar"):
        yield Case(f"NaN in {name}", single(more(**{name: torch.tensor(torch.nan)})))
    large = state["first_stage_model.decoder.conv_in.weight"].clone()
    large.view(-1)[3] = 1e5
    path = single(state | {"first_stage_model.decoder.conv_in.weight": large})
    yield Case("too large for half", path, None, "NaN or infinite", {"dtype": torch.float16},
               theirs=lambda path: load_theirs(path, torch_dtype=torch.float16).to(torch.float32))  # fmt: skip


# --- B: refused elsewhere, or here before


def leftovers() -> Iterator[Case]:
    """B.1 what lies beside the networks, and within"""
    one, layer = torch.ones(4), "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    for name in (
        "cond_stage_model.logit_scale", "cond_stage_model.transformer.text_projection.weight",
        "cond_stage_model.transformer.visual_projection.weight", "cond_stage_model.transformer.vision_model.x",
        "global_step", "epoch", "logvar", "scale_factor", "first_stage_model.loss.discriminator.main.0.weight",
        "first_stage_model.model_ema.decay", "embedding_manager.string_to_param_dict.*", "string_to_param.*",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "lora_unet_conv_in.alpha",
        "control_model.input_blocks.0.0.weight", "conditioner.embedders.0.x", "model_ema.diffusion_modelmore",
        "safety_checker.concept_embeds", "state_dict", "clip_l.x", "motion_modules.0.x", "denoiser.x",
        "model.alphas_cumprod", "t5xxl.x", "ip_adapter.1.to_k_ip.weight", "hada_w1_a", "double_blocks.0.x",
    ):  # fmt: skip
        yield Case(name, single(more(**{name: one})))
    yield Case("position ids as half", single(more(**{f"{names.LDM['text_encoder']}.{names.POSITIONS}":
               torch.arange(16)[None].half()})))  # fmt: skip
    yield Case("no position ids", single({n: v for n, v in single_state().items() if names.POSITIONS not in n}))
    for name, what in {
        f"{layer}.bias": "left over", f"{layer}.lora_down.weight": "left over", f"{layer}.input_scale": "scaled float8",
        f"{layer}.scale_weight": "scaled float8", f"{layer}.weight_scale": "scaled float8",
        f"{layer}.comfy_quant": "left over", "model.diffusion_model.time_embed.cond_proj.weight": "LCM",
        "model.diffusion_model.label_emb.0.0.weight": "SDXL", "model.diffusion_model.double_blocks.0.x": "transformer",
        "first_stage_model.encoder.more": "left over", "first_stage_model.decoder.mid.attn_2.q.weight": "left over",
        "cond_stage_model.transformer.text_model.more": "left over", "model.diffusion_model.motion.x": "left over",
    }.items():  # fmt: skip
        yield Case(name, single(more(**{name: one})), None, what)
    state = single_state()
    state[f"{layer}.weight"] = (2 * state[f"{layer}.weight"]).to(torch.float8_e4m3fn)
    state[f"{layer}.scale_weight"] = torch.tensor(0.5)
    yield Case("scaled float8", single(state), None, "scaled float8")
    eighth = {n: v.to(torch.float8_e4m3fn) if n.endswith("to_q.weight") else v for n, v in single_state().items()}
    rounded = {n: v.to(torch.float8_e4m3fn).float() if n.endswith("to_q.weight") and "attentions" in n else v
               for n, v in unet_state().items()}  # fmt: skip
    yield Case("float8 without scales", single(eighth), Truth(rounded))
    yield Case("a text encoder by NovelAI's names", single({n.replace("transformer.text_model.", "transformer."): v
               for n, v in single_state().items()}))  # fmt: skip
    spelt = {n: v[:, None, None] if ".attn_1." in n and n.endswith("bias") and "norm" not in n else v
             for n, v in single_state().items()}  # fmt: skip
    yield Case("biases (C, 1, 1) in the VAE", single(spelt))
    flat = {n: v[:, :, 0, 0] if ".attn_1." in n and v.ndim == 4 else v for n, v in single_state().items()}
    yield Case("linear layers in the VAE", single(flat))
    table = f"{names.LDM['text_encoder']}.embeddings.token_embedding.weight"
    own = text_state()["embeddings.token_embedding.weight"]
    rows = torch.cat([own, torch.ones(1, 48)])
    truth = Truth(text=text_state() | {"embeddings.token_embedding.weight": rows}, vocabulary=len(rows))
    yield Case("a row more in the vocabulary", single(single_state() | {table: rows}), truth)
    halves = {n: v.half() if v.is_floating_point() and "alphas" not in n and "betas" not in n else v
              for n, v in single_state().items()}  # fmt: skip
    unet, vae, encoder = (
        {n: v.half().float() for n, v in state.items()} for state in (unet_state(), vae_state(), text_state())
    )
    yield Case("in half", single(halves), Truth(unet, vae, encoder))
    for folder in ("safety_checker", "image_encoder", "unet_ema"):

        def edit(root: Path, folder: str = folder) -> None:
            tiny_models.save({"x": one}, root / folder / "model.safetensors")
            tiny_models.write_json(root / folder / "config.json", {"_class_name": "X"})

        yield Case(f"{folder}/ in a folder", changed(edit))
    for what, words, mark in (("LoRA", {"lora_unet_conv_in.lora_down.weight": one}, "a LoRA"),
                              ("ControlNet", {"control_model.x": one}, "a ControlNet"),
                              ("inversion", {"emb_params": one}, "a textual inversion")):  # fmt: skip
        yield Case(f"a {what} alone", single(words), None, mark)


def lora_truth(layers: Mapping[str, tuple[int, ...]], scale: float = 1.0, rank: int = 4) -> Truth:
    """The tiny model under a LoRA: W + scale · up · down of each layer."""
    unet, encoder = unet_state(), text_state()
    for layer, shape in layers.items():
        state = unet if f"{layer}.weight" in unet else encoder
        state[f"{layer}.weight"] = state[f"{layer}.weight"] + spellings.change(shape, rank, scale)
    return Truth(unet, text=encoder)


def with_lora(what: str, file: Path, truth: Truth | None = None, scale: float = 1.0, **given: Any) -> Case:
    def theirs(pipe: Any) -> None:
        pipe.load_lora_weights(file.parent, weight_name=file.name)
        if scale != 1:
            pipe.fuse_lora(lora_scale=scale)

    return Case(what, whole_folder(), truth, then=lambda sd: methods.apply_lora(sd, loading.read_lora(file), scale),
                then_theirs=theirs, **given)  # fmt: skip


def saved(state: State, words: dict[str, str] | None = None) -> Path:
    file = fresh() / "one.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, file, words)
    return file


def loras() -> Iterator[Case]:
    """B.2 LoRA files"""
    inner, text, s = spellings.UNET_LAYERS, spellings.TEXT_LAYERS, spellings
    convolutions, every = s.CONVOLUTIONS, s.ALL
    kohya = s.state(s.kohya, "unet", inner) | s.state(s.kohya, "text_encoder", text)

    def alphas(state: State, alpha: Tensor) -> State:
        return state | {n.replace("lora_down.weight", "alpha"): alpha.clone() for n in state if "lora_down" in n}

    for spell in (s.kohya, s.newest, s.older, s.oldest, s.adapters, s.comfy, s.original):
        for what, layers in (("attention", inner), ("convolutions", convolutions), ("ends", s.ENDS), ("all", every)):
            state, of = s.state(spell, "unet", layers), layers
            if what == "all" and spell not in (s.comfy, s.original):
                state, of = state | s.state(spell, "text_encoder", text), {**layers, **text}
            yield with_lora(f"{spell.__name__}, {what}", saved(state), lora_truth(of))
        if spell not in (s.comfy, s.original):
            yield with_lora(
                f"{spell.__name__}, text encoder", saved(s.state(spell, "text_encoder", text)), lora_truth(text)
            )
    for alpha in (torch.tensor(1.0), torch.tensor(8.0), torch.tensor([2.0]), torch.tensor(4), torch.tensor(2.0).half(),
                  torch.tensor(0.0), torch.tensor(-2.0), torch.tensor(3.0).bfloat16()):  # fmt: skip
        said = f"{alpha.item()} {alpha.dtype} {list(alpha.shape)}"
        yield with_lora(f"α {said}", saved(alphas(kohya, alpha)), lora_truth({**inner, **text}, alpha.item() / 4))
    some = {n: v for n, v in alphas(kohya, torch.tensor(4.0)).items() if "alpha" not in n or "to_q" in n}
    yield with_lora("α of some layers", saved(some), lora_truth({**inner, **text}))
    for scale in (0.5, -1.0, 0.0, 3.0):
        yield with_lora(f"at {scale}", saved(kohya), lora_truth({**inner, **text}, scale), scale)
    for rank in (1, 2, 32):
        for layer in ("conv_in", "conv_out", next(iter(inner)), "mid_block.resnets.0.conv2"):
            state = s.state(s.kohya, "unet", {layer: every[layer]}, {layer: rank})
            yield with_lora(f"rank {rank} of {layer}", saved(state), lora_truth({layer: every[layer]}, rank=rank))
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        truth = Truth()
        rounded = {n: v.to(kind) for n, v in s.state(s.kohya, "unet", inner).items()}
        for layer, shape in inner.items():
            down, up = (factor.to(kind).float().flatten(1) for factor in s.factors(shape, 4))
            truth.unet[f"{layer}.weight"] = truth.unet[f"{layer}.weight"] + (up @ down).view(shape)
        yield with_lora(f"in {kind}", saved(rounded), truth)
    layer = "down_blocks.1.attentions.0.proj_in"
    flat = {n: v.flatten(1) for n, v in s.state(s.kohya, "unet", {layer: inner[layer]}).items()}
    yield with_lora("a 1×1 convolution as linear", saved(flat), lora_truth({layer: inner[layer]}))
    layer = next(iter(inner))
    deep = {n: v[..., None, None] for n, v in s.state(s.kohya, "unet", {layer: inner[layer]}).items()}
    yield with_lora("a linear layer as 1×1", saved(deep), lora_truth({layer: inner[layer]}))
    start = "lora_unet_down_blocks_0_resnets_1_conv1"
    down, mid, up = drawn(1, 3, 32, 1, 1), drawn(2, 3, 3, 3, 3), 0.1 * drawn(3, 32, 3, 1, 1)
    truth = Truth()
    truth.unet["down_blocks.0.resnets.1.conv1.weight"] = truth.unet["down_blocks.0.resnets.1.conv1.weight"] + 2 * (
        torch.einsum("or,rskl,si->oikl", up[..., 0, 0], mid, down[..., 0, 0]))  # fmt: skip
    three = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(6.0)}
    yield with_lora("LoCon in three factors", saved({f"{start}.{n}": v for n, v in three.items()}), truth)
    for first, second in ((1.0, 1.0), (0.5, -0.25)):
        one, other = saved(s.state(s.kohya, "unet", inner)), saved(s.state(s.newest, "unet", inner))

        def both(sd: Any, pair: Any = (one, other, first, second)) -> Any:
            sd = methods.apply_lora(sd, loading.read_lora(pair[0]), pair[2])
            return methods.apply_lora(sd, loading.read_lora(pair[1]), pair[3])

        def both_theirs(pipe: Any, pair: Any = (one, other, first, second)) -> None:
            pipe.load_lora_weights(pair[0].parent, weight_name=pair[0].name, adapter_name="a")
            pipe.load_lora_weights(pair[1].parent, weight_name=pair[1].name, adapter_name="b")
            pipe.set_adapters(["a", "b"], [pair[2], pair[3]])

        yield Case(f"two at {first} and {second}", whole_folder(), lora_truth(inner, first + second), then=both,
                   then_theirs=both_theirs)  # fmt: skip
    words = {
        "ss_network_dim": "4",
        "ss_network_alpha": "1",
        "ss_sd_model_name": "xlarge",
        "ss_base_model_version": "sd_v1",
    }
    yield with_lora("words of kohya's", saved(kohya, words), lora_truth({**inner, **text}))
    yield with_lora("te1", saved({n.replace("lora_te_", "lora_te1_"): v for n, v in kohya.items()}),
                    lora_truth({**inner, **text}))  # fmt: skip
    plain = s.state(s.kohya, "unet", inner)
    for name, shape, what in (
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", (4, 4), "LoHa"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", (4, 4), "LoKr"),
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", (64,), "DoRA"),
        ("lora_unet_mid_block_attentions_0_proj_in.oft_blocks", (4, 4), "OFT"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", (4, 4), "SDXL"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", (4, 4), "Flux"),
        ("lora_unet_down_blocks_9_resnets_0_conv1.lora_down.weight", (4, 4), "unknown"),
        ("lora_unet_conv_in.diff", (32, 4, 3, 3), "unknown"),
        ("lora_unet_conv_in.diff_b", (32,), "unknown"),
        ("unet.conv_in.lora_magnitude_vector", (32,), "DoRA"),
        ("lora_unet_time_embed_9.lora_up.weight", (4, 4), "unknown"),
        ("text_encoder.text_model.encoder.layers.40.mlp.fc1.lora_A.weight", (4, 48), "without"),
        (s.kohya("unet", next(iter(inner)), "bias"), (32,), "unknown"),
    ):
        yield with_lora(name, saved(plain | {name: torch.ones(shape)}), None, refused=what)
    name = next(iter(plain))
    for what, state, mark in (
        ("NaN", plain | {name: plain[name] * torch.nan}, "NaN"),
        ("without its up", {n: v for n, v in plain.items() if n != name}, "without their"),
        ("another width", plain | {name: torch.ones(4, 33)}, "does not fit"),
        ("integers", plain | {name: plain[name].int()}, "not floats"),
        ("nothing", {"x": torch.ones(1)}, "not a LoRA"),
    ):
        yield with_lora(what, saved(state), None, refused=mark)


def parts_from_elsewhere() -> Iterator[Case]:
    """B.3 a VAE or a text encoder from elsewhere"""
    vae, encoder = doubled(vae_state()), doubled(text_state())
    of_vae, of_text = Truth(vae=vae), Truth(text=encoder)
    original = to_single("vae", vae)
    original = {n: v[:, :, None, None] if ".attn_1." in n and v.ndim == 2 else v for n, v in original.items()}
    bare = {n.removeprefix("first_stage_model."): v for n, v in original.items()}

    def folder_of(part: str, settings: Any, state: State, stem: str, file: str = "") -> Path:
        folder = fresh() / "alone"
        tiny_models.write_json(folder / "config.json", settings)
        save_file(state, folder / f"{stem}{file}.safetensors", {"format": "pt"})
        return folder

    alone = folder_of("vae", tiny_models.VAE_SETTINGS, vae, "diffusion_pytorch_model")
    model = changed(lambda folder: save_file(vae, folder / "vae/diffusion_pytorch_model.safetensors", {"format": "pt"}))
    files = {
        "a folder": alone, "a model's folder": model, "a folder's file": alone / "diffusion_pytorch_model.safetensors",
        "a file by diffusers' names": saved(vae), "a file by older names": saved(bare),
        "with what it was trained by": saved(bare | {"loss.logvar": torch.ones(1), "model_ema.decay": torch.ones(1)}),
        "with its prefix": saved(original), "a whole file": single(single_state() | original),
        "a folder of half": folder_of("vae", tiny_models.VAE_SETTINGS, {n: v for n, v in vae.items()},
                                      "diffusion_pytorch_model", ".fp16"),
        "a bfloat16's rounding": saved({n: v.bfloat16() for n, v in vae.items()}),
    }  # fmt: skip

    def their_vae(file: Path) -> Any:
        if file.is_dir():
            inside = file / "vae" if (file / "vae").is_dir() else file
            return diffusers.AutoencoderKL.from_pretrained(inside, local_files_only=True)
        return diffusers.AutoencoderKL.from_single_file(str(file), config=str(whole_folder()), subfolder="vae",
                                                        local_files_only=True)  # fmt: skip

    def case(what: str, path: Path, file: Path, truth: Truth | None, refused: str | None = None) -> Case:
        return Case(f"VAE: {what}", path, truth, refused, {"vae": file},
                    theirs=lambda path: load_theirs(path, vae=their_vae(file)))  # fmt: skip

    lacking = single({n: v for n, v in single_state().items() if not n.startswith("first_stage_model")})
    for what, file in files.items():
        truth = Truth(vae={n: v.bfloat16().float() for n, v in vae.items()}) if "bfloat16" in what else of_vae
        for path in (whole_folder(), lacking):
            yield case(f"{what}, for a {'folder' if path.is_dir() else 'file without'}", path, file, truth)
    yield Case("a file without a VAE", lacking, None, "give --vae PATH")
    sdxl = folder_of("vae", tiny_models.VAE_SETTINGS | {"scaling_factor": 0.13025}, vae, "diffusion_pytorch_model")
    for what, file, mark in (
        ("SDXL's folder", sdxl, "0.13025"),
        ("SDXL's file of it", sdxl / "diffusion_pytorch_model.safetensors", "0.13025"),
        ("SDXL's by its words", saved(vae, {"modelspec.architecture": "Stable-Diffusion-XL-v1-base/vae"}), "SDXL"),
        ("a UNet", saved(unet_state()), "holds no VAE"),
        ("one lacking", saved({n: v for n, v in vae.items() if n != "quant_conv.bias"}), "1 missing"),
        ("nowhere", ROOM / "nowhere.safetensors", "no such file"),
        ("NaN", saved({n: v * torch.nan if n == "quant_conv.bias" else v for n, v in vae.items()}), "NaN"),
        ("of 16 channels", saved(vae | {"decoder.conv_in.weight": torch.ones(64, 16, 3, 3)}), "decoder.conv_in.weight"),
    ):
        yield case(what, whole_folder(), file, None, mark)

    named = {f"text_model.{n}": v for n, v in encoder.items()}
    other = changed(lambda folder: save_file(named, folder / "text_encoder/model.safetensors", {"format": "pt"}))
    clip = {"model_type": "clip", "text_config": tiny_models.TEXT_SETTINGS}
    files = {
        "a model's folder": other, "a folder": other / "text_encoder", "a file of it": saved(named),
        "a file without prefix": saved(encoder), "with its prefix": saved(to_single("text_encoder", encoder)),
        "a whole CLIP": folder_of("text", clip, named | {"text_projection.weight": torch.ones(48, 48)}, "model"),
        "a whole file": single(single_state() | to_single("text_encoder", encoder)),
        "a file with its projection": saved(named | {"text_projection.weight": torch.ones(48, 48)}),
    }  # fmt: skip

    def their_text(file: Path) -> Any:
        inside = file / "text_encoder" if (file / "text_encoder").is_dir() else file
        return transformers.CLIPTextModel.from_pretrained(inside, local_files_only=True)

    def with_their_text(file: Path, path: Path) -> Any:
        return load_theirs(path, text_encoder=their_text(file))

    lacking = single({n: v for n, v in single_state().items() if not n.startswith("cond_stage_model")})
    for what, file in files.items():
        for path in (whole_folder(), lacking):
            yield Case(f"text encoder: {what}", path, of_text, None, {"text_encoder": file},
                       theirs=partial(with_their_text, file))  # fmt: skip
    yield Case("a file without a text encoder", lacking, None, "give --text-encoder PATH")
    yield Case(
        "text encoder: a UNet", whole_folder(), None, "holds no text encoder", {"text_encoder": saved(unet_state())}
    )
    nodes = saved({f"clip_l.transformer.{n}": v for n, v in named.items()})
    yield Case("text encoder: by nodes' names", whole_folder(), None, "holds no text encoder", {"text_encoder": nodes})
    cut = saved({n: v for n, v in named.items() if "layers.1." not in n})
    yield Case("text encoder: cut", whole_folder(), None, "missing", {"text_encoder": cut})


def clip_skips() -> Iterator[Case]:
    """B.4 clip skip"""
    for skip in (1, 2):
        for path in (whole_folder(), single(), write_whole(fresh() / "model", ".fp16")):
            yield Case(f"{skip} of 2, {path.name}", path, options={"clip_skip": skip}, skip=skip)
    for skip in (0, 3, -1):
        yield Case(f"{skip} of 2", whole_folder(), None, "clip skip must be", {"clip_skip": skip}, skip=skip)
    for words in ({"modelspec.encoder_layer": "2"}, {"ss_clip_skip": "2"}):
        yield Case(f"told by {words}", single(words=words))
    file, layers = "text_encoder/config.json", "layers.1."
    one = Truth(text={n: v for n, v in text_state().items() if layers not in n}, layers=1)
    yield Case("settings with fewer layers", rewritten(file, num_hidden_layers=1), one)
    yield Case("both", rewritten(file, num_hidden_layers=1), None, "clip skip must be", {"clip_skip": 2}, skip=2)
    inner = spellings.TEXT_LAYERS
    lora = saved(spellings.state(spellings.kohya, "text_encoder", inner))
    case = with_lora("under a LoRA", lora, lora_truth(inner), options={"clip_skip": 2}, skip=2)
    yield case
    vectors = drawn(9, 2, 48)
    toy = saved({"toy": vectors})
    yield Case("with a textual inversion", whole_folder(), PLAIN, None, {"clip_skip": 2}, prompt="a toy cat", skip=2,
               then=lambda sd: loading.add_embedding(sd, toy),
               then_theirs=lambda pipe: pipe.load_textual_inversion(toy), expected=with_vectors({"toy": vectors},
               "a toy cat", 2))  # fmt: skip


def with_vectors(learnt: Mapping[str, Tensor], prompt: str, skip: int = 1) -> Numbers:
    """The numbers of the tiny model whose table has rows for tokens that were put in between by hand."""
    pipe = PLAIN.pipeline()
    encoder, ids = pipe.text_encoder, [tiny_models.TEXT_SETTINGS["bos_token_id"]]
    table = encoder.get_input_embeddings().weight
    rows = [table.detach()]
    for word in prompt.split():
        if word in learnt:
            begin = sum(len(row) for row in rows)
            rows.append(learnt[word].reshape(-1, 48).float())
            ids += range(begin, begin + len(rows[-1]))
        else:
            ids += pipe.tokenizer(word)["input_ids"][1:-1]
    end = tiny_models.TEXT_SETTINGS["eos_token_id"]
    ids = (ids[: tiny_models.TOKENS - 1] + [end] * tiny_models.TOKENS)[: tiny_models.TOKENS]
    encoder.get_input_embeddings().weight = torch.nn.Parameter(torch.cat(rows))
    return {**numbers_of(PLAIN), "context": context_of(encoder, ids, skip)}


def sharded(folder: Path, variant: str = "", pieces: int = 3) -> dict[str, str]:
    """Cut a folder's UNet into several files with an index, and return which has which."""
    state, total = unet_state(), 0
    listed: dict[str, str] = {}
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    for n in range(pieces):
        own = dict([*state.items()][n::pieces])
        name = f"diffusion_pytorch_model{variant}-{n + 1:05}-of-{pieces:05}.safetensors"
        save_file(own, folder / "unet" / name, {"format": "pt"})
        listed |= dict.fromkeys(own, name)
        total += sum(value.nbytes for value in own.values())
    index = {"metadata": {"total_size": total}, "weight_map": listed}
    tiny_models.write_json(folder / f"unet/diffusion_pytorch_model.safetensors{variant}.index.json", index)
    return listed


def shards_and_variants() -> Iterator[Case]:
    """B.5 shards, variants, a cache's root"""
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    for pieces in (1, 3, 11):
        yield Case(f"{pieces} shards", changed(partial(sharded, pieces=pieces)))

    def broken(edit: Callable[[Path, dict[str, str]], object]) -> Path:
        return changed(lambda folder: edit(folder, sharded(folder)))

    def relist(folder: Path, listed: dict[str, Any]) -> None:
        tiny_models.write_json(folder / index, {"weight_map": listed})

    some = "conv_in.bias"
    for what, edit, mark in (
        ("a shard missing", lambda f, m: (f / "unet" / m[some]).unlink(), "which is not there"),
        ("a tensor not listed", lambda f, m: relist(f, {n: v for n, v in m.items() if n != some}), "does not list"),
        ("a tensor listed elsewhere", lambda f, m: relist(f, m | {some: sorted({*m.values()} - {m[some]})[0]}), "list"),
        ("a tensor too many listed", lambda f, m: relist(f, m | {"more": m[some]}), "does not hold it"),
        ("a path that leads out", lambda f, m: relist(f, m | {some: "../vae/x.safetensors"}), "does not list"),
        ("an empty list", lambda f, m: relist(f, {}), ""),
        ("a list that is none", lambda f, m: tiny_models.write_json(f / index, {"weight_map": []}), "weight_map"),
        ("no JSON", lambda f, m: (f / index).write_text("{"), "not JSON"),
        ("shards without their list", lambda f, m: (f / index).unlink(), ""),
    ):
        yield Case(what, broken(edit), None, mark)

    def beside(folder: Path) -> None:
        sharded(folder)
        save_file(unet_state(), folder / "unet/diffusion_pytorch_model.safetensors", {"format": "pt"})

    yield Case("shards beside the same whole", changed(beside))

    def spread(folder: Path) -> None:
        for file in sorted((folder / "text_encoder").glob("*.safetensors")):
            file.rename(file.with_name("model-00001-of-00001.safetensors"))
        listed = {f"text_model.{name}": "model-00001-of-00001.safetensors" for name in tiny_models.text_state()}
        tiny_models.write_json(folder / "text_encoder/model.safetensors.index.json", {"weight_map": listed})

    yield Case("a text encoder's shard", changed(spread))
    for variant in (".fp16", ".bf16", ".ema-only", ".non_ema"):
        path = changed(lambda folder: None, variant)
        yield Case(f"{variant} alone", path, theirs=partial(load_theirs, variant=variant[1:]))
        path = changed(partial(sharded_variant, variant=variant))
        yield Case(f"{variant} in shards", path, theirs=partial(load_theirs, variant=variant[1:]))

    def two(folder: Path) -> None:
        tiny_models.save(tiny_models.unet_state(seed=4), folder / "unet/diffusion_pytorch_model.fp16.safetensors")

    yield Case("fp16 of another beside the full", changed(two))

    def three(folder: Path) -> None:
        two(folder)
        file = folder / "unet/diffusion_pytorch_model.safetensors"
        file.rename(file.with_name("diffusion_pytorch_model.non_ema.safetensors"))
        file.with_name("diffusion_pytorch_model.fp16.safetensors").rename(
            file.with_name("diffusion_pytorch_model.ema.safetensors")
        )

    yield Case("two variants, neither full", changed(three), None, "which variant?")
    yield Case("a pickle beside", changed(lambda f: (f / "unet/diffusion_pytorch_model.bin").write_bytes(b"\x80\x02")))

    def root(snapshots: dict[str, int], main: str | None) -> Path:
        folder = fresh() / "models--someone--model"
        for name, seed in snapshots.items():
            write_whole(folder / "snapshots" / name)
            tiny_models.save(
                tiny_models.unet_state(seed), folder / f"snapshots/{name}/unet/diffusion_pytorch_model.safetensors"
            )
        if main is not None:
            (folder / "refs").mkdir(parents=True)
            (folder / "refs/main").write_text(main)
        return folder

    yield Case("a cache's root", root({"abc": 1}, "abc"))
    yield Case("a cache's root, two", root({"abc": 4, "def": 1}, "def"))
    yield Case("a cache's root, a line's end", root({"abc": 4, "def": 1}, "def\n"))
    yield Case("a cache's root, no main", root({"abc": 1}, None))
    yield Case("a cache's root, two and no main", root({"abc": 1, "def": 4}, None), None, "2 versions")
    yield Case("a cache's root, a main that is gone", root({"abc": 1, "def": 4}, "ghi"), None, "2 versions")
    yield Case("a cache's root, empty", root({}, "abc"), None, "")


def sharded_variant(folder: Path, variant: str) -> None:
    write_whole(folder, variant)
    for file in folder.rglob("*.safetensors"):
        if variant not in file.name:
            file.unlink()
    (folder / f"unet/diffusion_pytorch_model{variant}.safetensors").rename(
        folder / "unet/diffusion_pytorch_model.safetensors"
    )
    sharded(folder, variant)


def inversions() -> Iterator[Case]:
    """B.6 textual inversion"""

    def case(what: str, state: State, prompt: str, learnt: Mapping[str, Tensor] | None, token: str | None = None,
             refused: str | None = None, name: str = "toy") -> Case:  # fmt: skip
        file = saved(state).rename(fresh() / f"{name}.safetensors")
        return Case(what, whole_folder(), None, refused, prompt=prompt,
                    then=lambda sd: loading.add_embedding(sd, file, token),
                    then_theirs=lambda pipe: pipe.load_textual_inversion(file, token=token),
                    expected=None if learnt is None else with_vectors(learnt, prompt))  # fmt: skip

    one, three = drawn(1, 48), drawn(2, 3, 48)
    for prompt in ("a toy cat", "toy", "red toy toy dot", "no boy", "toy " * 6 + "cat", "a red cat toy"):
        for n, vectors in ((1, one), (3, three)):
            yield case(f"{n} vectors, {prompt!r}", {"toy": vectors}, prompt, {"toy": vectors})
    yield case("in half", {"toy": three.half()}, "a toy cat", {"toy": three.half().float()})
    yield case("emb_params", {"emb_params": three}, "a toy cat", {"toy": three}, "toy")
    yield case("emb_params, by the file's name", {"emb_params": three}, "a toy cat", {"toy": three})
    yield case("another token", {"<cat-toy>": three}, "a thing cat", {"thing": three}, "thing")
    yield case("with angles", {"<toy>": three}, "a <toy> cat", {"<toy>": three})
    yield case("with a hyphen", {"emb_params": three}, "a bad-hands cat", {"bad-hands": three}, name="bad-hands")
    yield case("in capitals", {"TOY": one}, "a TOY cat", {"TOY": one})
    yield case("in capitals, in small in the prompt", {"TOY": one}, "a toy cat", {"toy": one})
    yield case("two tokens", {"toy": one, "ball": three}, "a toy ball", {"toy": one, "ball": three})
    for what, state, mark in (
        ("another width", {"toy": torch.ones(2, 768)}, "must be (n, 48)"),
        ("SDXL's", {"clip_l": three, "clip_g": torch.ones(3, 1280)}, "SDXL"),
        ("NaN", {"toy": three * torch.nan}, "NaN"),
        ("integers", {"toy": three.int()}, "not a textual inversion"),
        ("a token that is there", {"red</w>": one}, "is a token already"),
        ("a LoRA", {"lora_unet_conv_in.lora_down.weight": three}, "not a textual inversion"),
        ("no vectors", {"toy": torch.ones(0, 48)}, "not a textual inversion"),
    ):
        yield case(what, state, "a toy cat", None, refused=mark)


def said_what_it_is() -> Iterator[Case]:
    """B.7 told by name what it is"""
    state = single_state()
    first = "model.diffusion_model.input_blocks.0.0.weight"
    keys = [name for name in state if name.endswith("attn2.to_k.weight")]
    for what, own, mark in (
        ("inpainting", state | {first: torch.ones(32, 9, 3, 3)}, "inpainting"),
        ("pix2pix", state | {first: torch.ones(32, 8, 3, 3)}, "InstructPix2Pix"),
        ("LCM", state | {"model.diffusion_model.time_embed.cond_proj.weight": torch.ones(128, 256)}, "LCM"),
        ("SD-Turbo", state | {name: torch.ones(len(state[name]), 1024) for name in keys}, "SD-Turbo"),
        ("small-sd", {n: v for n, v in state.items() if ".middle_block." not in n}, "BK-SDM"),
        ("SDXL", state | {name: torch.ones(len(state[name]), 2048) for name in keys}, "SDXL"),
    ):
        yield Case(f"file, {what}", single(own), None, mark)
    for what, settings, mark in (
        ("inpainting", {"in_channels": 9}, "inpainting"),
        ("pix2pix", {"in_channels": 8}, "InstructPix2Pix"),
        ("LCM", {"time_cond_proj_dim": 256}, "LCM"),
        ("SD-Turbo", {"cross_attention_dim": 1024}, "SD-Turbo"),
        ("tiny-sd", {"layers_per_block": 1, "mid_block_type": None}, "BK-SDM"),
        ("SDXL", {"addition_embed_type": "text_time"}, "SDXL"),
    ):
        yield Case(f"folder, {what}", rewritten("unet/config.json", **settings), None, mark)
    for what, data, mark in (
        ("GGUF", b"GGUF" + bytes(100), "GGUF"), ("a pickle", b"\x80\x02}q\x00." + bytes(80), "pickle"),
        ("a zip of PyTorch's", b"PK\x03\x04" + bytes(100), "pickle"),
        ("a page", b"<!DOCTYPE html><html>", "not a safetensors file"),
        ("a pointer", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), ("nothing", b"", "empty"),
    ):  # fmt: skip
        path = fresh() / "model.safetensors"
        path.write_bytes(data)
        yield Case(f"file, {what}", path, None, mark)


KINDS: dict[str, Callable[[], Iterator[Case]]] = {
    "A.1": stale_ema, "A.2": v_prediction, "A.3": by_patterns, "A.4": schedules, "A.5": cut_encoders,
    "A.6": null_and_nan, "B.1": leftovers, "B.2": loras, "B.3": parts_from_elsewhere, "B.4": clip_skips,
    "B.5": shards_and_variants, "B.6": inversions, "B.7": said_what_it_is,
}  # fmt: skip


def main(wanted: list[str]) -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity(50)
    transformers.utils.logging.set_verbosity(50)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    rows: list[list[Any]] = []
    wrong = []
    for kind, cases in KINDS.items():
        if wanted and kind not in wanted:
            continue
        counts: Counter[str] = Counter()
        for case in cases():
            expected = expected_of(case)
            right, ours = outcome_of_ours(case, expected)
            theirs = outcome_of_theirs(case, expected)
            counts["cases"] += 1
            counts["wrong" if not right else "refused" if case.refused is not None else "run"] += 1
            counts[theirs.split(" ")[0].rstrip(":")] += 1
            if wanted:
                print(
                    f"{kind} {'right' if right else 'WRONG'} | {case.what} | {ours} | {theirs}".replace("\n", "\\n"),
                    flush=True,
                )
            if not right:
                wrong.append(f"{kind} {case.what}: {ours}")
        keys = ("cases", "run", "refused", "wrong", "same", "other", "fails")
        rows.append([str(cases.__doc__), *(counts[key] for key in keys)])
    print("| kind | cases | right: run | right: refused | wrong | diffusers: the same | another number | fails |")
    print("| --- |" + " --- |" * 7)
    for row in [*rows, ["all", *(sum(row[n] for row in rows) for n in range(1, 8))]]:
        print("| " + " | ".join(map(str, row)) + " |")
    print(*wrong, sep="\n")
    shutil.rmtree(ROOM)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
