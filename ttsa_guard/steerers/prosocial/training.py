"""Train what the method needs: a harm-tuned copy, whose difference is the harm vector, and the reward model.

Known of *ProSocialAlign* (arXiv 2512.06515): one preference-conditioned autoregressive reward model for five attributes,
trained jointly with gradient-conflict projection. The losses are not known to us; ours are those of *PARM*'s code: each step
draws a preference p ~ Dirichlet(1/2, ..., 1/2), sets it in the adapter, and minimises sum_i p_i L_i, with L_i the mean over
pairs of attribute i of

    -log sigmoid( beta (log pi_p(chosen | x) - log pi_p(rejected | x)) )  -  anchor beta log pi_p(chosen | x)

log-likelihoods summed over the tokens of an answer, without a reference model. The second term is not PARM's but CPO's (arXiv
2401.08417): without it nothing keeps the model from unlearning what the two answers have in common, and the embedded one did,
down to fragments. The gradients of the terms p_i L_i are made one by PCGrad (`conflict`), or averaged.

The harm-tuned copy minimises the plain negative log-likelihood, with its embeddings frozen: what words mean is needed for all
that it can do, and a vector that changes them costs more of that than it takes of the harm (measured on the embedded model).
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from ttsa_guard.backends.local.controlled import fingerprint
from ttsa_guard.errors import ConfigError, ModelError
from ttsa_guard.hf.devices import resolve_device
from ttsa_guard.hf.loading import Source
from ttsa_guard.steerers.prosocial.adapter import Adapter, Shape
from ttsa_guard.steerers.prosocial.conflict import averaged, projected
from ttsa_guard.steerers.prosocial.data import Answered, Encoded, Encoder, Pair
from ttsa_guard.steerers.prosocial.harm_vector import HarmVector, Within
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES

OnStep = Callable[[int, float], None]
"""Called with the number of steps done and the loss of the last one."""
_ALPHA = 0.5


@dataclass(frozen=True)
class Plan:
    """One run of AdamW, with a linear warm-up and a cosine decay to zero.

    Args:
        batch: examples a step; for the reward model, pairs of each attribute.
        peak: highest learning rate.
        state: file from which a stopped run goes on, and in which this one is kept; None: not kept.
        every: steps between two writings of it.
    """

    steps: int = 500
    batch: int = 8
    peak: float = 5e-4
    warm_up: int = 20
    decay: float = 0.05
    seed: int = 0
    state: Path | None = None
    every: int = 50


def load(name: str, device: str = "auto") -> tuple[Any, Encoder]:
    """A model to train from, in float32, and what encodes texts for it.

    Args:
        name: 'embedded', a Hugging Face name, or a path.

    Raises:
        ModelError: it cannot be loaded.
    """
    path = Source.of(name).path
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except Exception as error:
        hint = "give 'embedded', a local folder, or a name on the Hugging Face hub"
        raise ModelError(f"model {name!r} cannot be loaded: {type(error).__name__}", hint=hint) from error
    return model.to(resolve_device(device)), Encoder(tokenizer)


def harm_vector(
    model: Any,
    encode: Encoder,
    examples: Sequence[Answered],
    plan: Plan,
    *,
    method: Literal["full", "lora"] = "full",
    shape: Shape | None = None,
    keep: float = 0.1,
    within: Within = "all",
    on_step: OnStep = lambda *_: None,
) -> HarmVector:
    """Tune a copy of `model` on `examples` of harm; the copy's difference to it, the share `keep` of its entries.

    Raises:
        ConfigError: there are no examples, or the model has no layers for a low-rank adapter.
    """
    encoded = encode.answers(examples)
    torch.manual_seed(plan.seed)
    base, tuned = fingerprint(model), copy.deepcopy(model).float().train()
    adapter = Adapter(tuned, Shape(**{**asdict(shape or Shape()), "objectives": 0}), base=base) if method == "lora" else None
    tuned.requires_grad_(adapter is None)
    for words in (tuned.get_input_embeddings(), tuned.get_output_embeddings()):
        if words is not None:
            words.requires_grad_(False)
    trained = [p for p in (adapter or tuned).parameters() if p.requires_grad]

    def step(number: int) -> float:
        batch = _drawn(plan, number).sample(encoded, min(plan.batch, len(encoded)))
        loss = -log_likelihoods(tuned, batch).sum() / sum(len(e.answer) for e in batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    if adapter:
        adapter.to(next(tuned.parameters()).device)
        with adapter.attached(tuned):
            optimise(trained, step, plan, {"of": base, "method": method, **asdict(adapter.shape)}, on_step)
        adapter.merge(tuned)
    else:
        optimise(trained, step, plan, {"of": base, "method": method}, on_step)
    made = f"{method} tuning, {plan.steps} steps of {plan.batch} of {len(examples)} examples; the top {keep:g} of {within}"
    return HarmVector.difference(model.float(), tuned, keep=keep, within=within, made=made)


def reward(
    model: Any,
    encode: Encoder,
    pairs: Sequence[Pair],
    plan: Plan,
    *,
    shape: Shape | None = None,
    beta: float = 0.01,
    anchor: float = 1.0,
    conflicts: Literal["project", "average"] = "project",
    attributes: Sequence[str] = ATTRIBUTES,
    on_step: OnStep = lambda *_: None,
) -> Adapter:
    """Train an adapter of `model` on preference pairs; the model itself stays as it is.

    Args:
        attributes: those to learn, all unless it is a plain adapter without objectives that is to learn one.

    Raises:
        ConfigError: an attribute has no pairs, or the model has no such layers.
    """
    encoded = encode.pairs(pairs)
    for name in attributes:
        if not encoded.get(name):
            raise ConfigError(f"there are no pairs for the attribute {name!r}", hint=f"needed are {', '.join(attributes)}")
    torch.manual_seed(plan.seed)
    of = "each attribute" if tuple(attributes) == ATTRIBUTES else ", ".join(attributes)
    made = f"{plan.steps} steps of {plan.batch} pairs of {of}, {conflicts}, beta {beta:g}, anchor {anchor:g}"
    adapter = Adapter(model, shape or Shape(), base=fingerprint(model), made=made)
    adapter.to(next(model.parameters()).device)
    trained = [*adapter.parameters()]
    combine = projected if conflicts == "project" else averaged
    model.requires_grad_(False)

    def step(number: int) -> float:
        rng = _drawn(plan, number)
        preference = dirichlet(rng, len(attributes))
        adapter.prefer(preference)
        gradients, total = [], 0.0
        for name, weight in zip(attributes, preference, strict=True):
            chosen = rng.sample(encoded[name], min(plan.batch, len(encoded[name])))
            values = log_likelihoods(model, [e for pair in chosen for e in pair]).view(-1, 2)
            better, worse = values.unbind(1)
            loss = (-logsigmoid(beta * (better - worse)) - anchor * beta * better).mean()
            found = torch.autograd.grad(weight * loss, trained)
            gradients.append(torch.cat([g.flatten() for g in found]))
            total += weight * loss.item()
        _assign(trained, combine(gradients, rng))
        return total

    about = {
        "of": adapter.base,
        "attributes": list(attributes),
        "conflicts": conflicts,
        "beta": beta,
        "anchor": anchor,
        **asdict(adapter.shape),
    }
    with adapter.attached(model):
        optimise(trained, step, plan, about, on_step)
    return adapter


def log_likelihoods(model: Any, examples: Sequence[Encoded]) -> torch.Tensor:
    """Log-likelihood in nats of each answer after its prompt, summed over its tokens; [n], float32."""
    device = next(model.parameters()).device
    longest = max(len(e.prompt) + len(e.answer) for e in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long, device=device)
    asked = torch.zeros(len(examples), longest, dtype=torch.bool, device=device)
    for row, example in enumerate(examples):  # padding is on the right: nothing sees it
        whole = [*example.prompt, *example.answer]
        ids[row, : len(whole)] = torch.tensor(whole)
        asked[row, len(example.prompt) : len(whole)] = True
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    chosen = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    found: torch.Tensor = (chosen * asked[:, 1:]).sum(-1)
    return found


def dirichlet(rng: random.Random, n: int) -> list[float]:
    """A draw from Dirichlet(1/2, ..., 1/2)."""
    drawn = [rng.gammavariate(_ALPHA, 1.0) + 1e-12 for _ in range(n)]
    return [d / sum(drawn) for d in drawn]


def optimise(
    parameters: Sequence[torch.nn.Parameter],
    step: Callable[[int], float],
    plan: Plan,
    about: Mapping[str, Any],
    on_step: OnStep,
) -> None:
    """Do what is left of a plan. `step` fills the gradients and gives the loss; it may depend on its number alone.

    Args:
        about: what has to be the same in a run that goes on.

    Raises:
        ConfigError: the state is one of another run.
    """
    optimizer = torch.optim.AdamW(parameters, lr=plan.peak, betas=(0.9, 0.98), weight_decay=plan.decay)
    settings = {**about, **{n: getattr(plan, n) for n in ("steps", "batch", "peak", "warm_up", "decay", "seed")}}
    device = parameters[0].device.type
    done = _resumed(plan.state, settings, parameters, optimizer) if plan.state else 0
    for number in range(done, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.peak * min((number + 1) / plan.warm_up, (1 + math.cos(math.pi * number / plan.steps)) / 2)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = step(number)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if plan.state and ((number + 1) % plan.every == 0 or number + 1 == plan.steps):
            _keep(plan.state, settings, number + 1, parameters, optimizer)
        on_step(number + 1, loss)


def _drawn(plan: Plan, number: int) -> random.Random:
    """Randomness of one step, the same in a run that goes on."""
    return random.Random(f"{plan.seed}/{number}")


def _assign(parameters: Sequence[torch.nn.Parameter], flat: torch.Tensor) -> None:
    start = 0
    for parameter in parameters:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()


def _keep(path: Path, settings: Mapping[str, Any], done: int, parameters: Sequence[torch.nn.Parameter], optimizer: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "settings": repr(sorted(settings.items())),
        "done": done,
        "parameters": [p.detach() for p in parameters],
        "optimizer": optimizer.state_dict(),
    }
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    fresh.replace(path)  # whoever stops us now leaves one whole state


def _resumed(path: Path, settings: Mapping[str, Any], parameters: Sequence[torch.nn.Parameter], optimizer: Any) -> int:
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True)
        same = state["settings"] == repr(sorted(settings.items()))
    except Exception as error:
        raise ConfigError(f"cannot read {path}: {type(error).__name__}", hint="remove it to begin again") from None
    if not same:
        raise ConfigError(f"{path} is the state of another run", hint="name another file, or remove it to begin again")
    with torch.no_grad():
        for parameter, value in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["done"])
