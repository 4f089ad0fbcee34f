"""Train a harm-tuned copy, whose difference to the model is the harm vector, and the reward model.

This is known of *ProSocialAlign* (arXiv 2512.06515): one preference-conditioned autoregressive
reward model serves five attributes and is trained jointly with gradient-conflict projection. The
losses are not known to us. Ours are those of *PARM*'s code: each step draws a preference
p ~ Dirichlet(1/2, ..., 1/2), sets it in the adapter, and minimises sum_i p_i L_i, where L_i is the
mean over pairs of attribute i of

    -log sigmoid( beta (log pi_p(chosen | x) - log pi_p(rejected | x)) )  -  anchor beta log
    pi_p(chosen | x)

The log-likelihoods are summed over the tokens of an answer, and there is no reference model. The
second term is not PARM's but CPO's (arXiv 2401.08417). Without it nothing keeps the model from
unlearning what the two answers have in common; the embedded model unlearned it, down to fragments.
The gradients of the terms p_i L_i are combined by PCGrad (see `conflict`), or averaged.

The harm-tuned copy minimises the plain negative log-likelihood, with its embeddings frozen. All
that the model can do needs the meanings of words, and a vector that changes them costs more of its
skill than of its harm (measured on the embedded model).
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
from ttsa_guard.files import reason, replacing
from ttsa_guard.hf.devices import resolve_device
from ttsa_guard.hf.source import Source
from ttsa_guard.steerers.prosocial.adapter import Adapter, AdapterShape
from ttsa_guard.steerers.prosocial.conflict import averaged, projected
from ttsa_guard.steerers.prosocial.data import AnswerExample, Encoded, ExampleEncoder, Pair
from ttsa_guard.steerers.prosocial.harm_vector import HarmVector, Within
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES

OnStep = Callable[[int, float], None]
"""A function of this type is called with the number of steps done and the loss of the last one."""
_ALPHA = 0.5


@dataclass(frozen=True)
class Plan:
    """Describe one run of AdamW, with a linear warm-up and a cosine decay to zero.

    Args:
        steps: the number of steps.
        batch: the number of examples in a step; for the reward model, of pairs of each attribute.
        peak: the highest learning rate.
        warm_up: the number of steps until the learning rate is at its peak.
        decay: the weight decay.
        seed: the seed of everything random.
        state: the file in which the run is kept, and from which a stopped run goes on; None keeps
            nothing.
        every: the number of steps between two writings of that file.
    """

    steps: int = 500
    batch: int = 8
    peak: float = 5e-4
    warm_up: int = 20
    decay: float = 0.05
    seed: int = 0
    state: Path | None = None
    every: int = 50


def load(name: str, device: str = "auto") -> tuple[Any, ExampleEncoder]:
    """Load a model to train from, in float32, and what encodes examples for it.

    Args:
        name: 'embedded', 'smollm2', a Hugging Face name, or a path.

    Raises:
        ModelError: it cannot be loaded.
    """
    source = Source.of(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, **source.options)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source.path, dtype=torch.float32, **source.options
        )
    except Exception as error:
        hint = "give 'embedded', a local folder, or a name on the Hugging Face hub"
        raise ModelError(
            f"model {name!r} cannot be loaded: {type(error).__name__}", hint=hint
        ) from error
    return model.to(resolve_device(device)), ExampleEncoder(tokenizer)


def harm_vector(
    model: Any,
    encode: ExampleEncoder,
    examples: Sequence[AnswerExample],
    plan: Plan,
    *,
    method: Literal["full", "lora"] = "full",
    shape: AdapterShape | None = None,
    keep: float = 0.1,
    within: Within = "all",
    on_step: OnStep = lambda *_: None,
) -> HarmVector:
    """Tune a copy of `model` on `examples` of harm, and return the copy's difference to it.

    Args:
        model: the model, in float32 as `load` gives it; it stays as it is.
        encode: it encodes the examples.
        examples: harmful answers.
        plan: the run.
        method: whether all weights but the embeddings are tuned, or a low-rank adapter.
        shape: the shape of that adapter; its objectives do not count.
        keep: the share of the entries to keep, see `HarmVector.top`.
        within: see `HarmVector.top`.
        on_step: see `OnStep`.

    Raises:
        ConfigError: there are no examples, or the model has no layers for a low-rank adapter.
    """
    encoded = encode.answers(examples)
    torch.manual_seed(plan.seed)
    base, tuned = fingerprint(model), copy.deepcopy(model).train()
    adapter = (
        Adapter(
            tuned, AdapterShape(**{**asdict(shape or AdapterShape()), "objectives": 0}), base=base
        )
        if method == "lora"
        else None
    )
    tuned.requires_grad_(adapter is None)
    for words in (tuned.get_input_embeddings(), tuned.get_output_embeddings()):
        if words is not None:
            words.requires_grad_(False)
    trained = [p for p in (adapter or tuned).parameters() if p.requires_grad]

    def step(number: int) -> float:
        batch = drawn(plan, number).sample(encoded, min(plan.batch, len(encoded)))
        loss = -log_likelihoods(tuned, batch).sum() / sum(len(e.answer) for e in batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    if adapter:
        adapter.to(next(tuned.parameters()).device)
        with adapter.attached(tuned):
            optimise(
                trained,
                step,
                plan,
                {"of": base, "method": method, **asdict(adapter.shape)},
                on_step,
            )
        adapter.merge(tuned)
    else:
        optimise(trained, step, plan, {"of": base, "method": method}, on_step)
    made = (
        f"{method} tuning, {plan.steps} steps of {plan.batch} of {len(examples)} examples; the top"
        f" {keep:g} of {within}"
    )
    return HarmVector.difference(model, tuned, keep=keep, within=within, made=made)


def reward(
    model: Any,
    encode: ExampleEncoder,
    pairs: Sequence[Pair],
    plan: Plan,
    *,
    shape: AdapterShape | None = None,
    beta: float = 0.01,
    anchor: float = 1.0,
    conflicts: Literal["project", "average"] = "project",
    attributes: Sequence[str] = ATTRIBUTES,
    on_step: OnStep = lambda *_: None,
) -> Adapter:
    """Train an adapter of `model` on preference pairs; the model itself stays as it is.

    Args:
        model: the model.
        encode: it encodes the pairs.
        pairs: pairs of every attribute.
        plan: the run.
        shape: the shape of the adapter.
        beta: the factor beta of the loss in the docstring of this module.
        anchor: the factor anchor of that loss.
        conflicts: whether conflicts between gradients are projected away.
        attributes: the attributes to learn. They are all of them, unless a plain adapter without
            objectives is to learn one.
        on_step: see `OnStep`.

    Raises:
        ConfigError: an attribute has no pairs, or the model has no such layers.
    """
    encoded = encode.pairs(pairs)
    for name in attributes:
        if not encoded.get(name):
            raise ConfigError(
                f"there are no pairs for the attribute {name!r}",
                hint=f"needed are {', '.join(attributes)}",
            )
    torch.manual_seed(plan.seed)
    of = "each attribute" if tuple(attributes) == ATTRIBUTES else ", ".join(attributes)
    made = (
        f"{plan.steps} steps of {plan.batch} pairs of {of}, {conflicts}, beta {beta:g}, anchor"
        f" {anchor:g}"
    )
    adapter = Adapter(model, shape or AdapterShape(), base=fingerprint(model), made=made)
    adapter.to(next(model.parameters()).device)
    trained = [*adapter.parameters()]
    combine = projected if conflicts == "project" else averaged
    model.requires_grad_(False)

    def step(number: int) -> float:
        rng = drawn(plan, number)
        preference = dirichlet(rng, len(attributes))
        adapter.prefer(preference)
        gradients, total = [], 0.0
        for name, weight in zip(attributes, preference, strict=True):
            chosen = rng.sample(encoded[name], min(plan.batch, len(encoded[name])))
            values = log_likelihoods(model, [e for pair in chosen for e in pair]).view(-1, 2)
            better, worse = values.unbind(1)
            loss = (-logsigmoid(beta * (better - worse)) - anchor * beta * better).mean()
            by_parameter = torch.autograd.grad(weight * loss, trained)
            gradients.append(torch.cat([g.flatten() for g in by_parameter]))
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
    """Return the log-likelihood of each answer after its prompt, in nats, [n], float32.

    It is the sum over the tokens of the answer.
    """
    device = next(model.parameters()).device
    longest = max(len(e.prompt) + len(e.answer) for e in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long, device=device)
    asked = torch.zeros(len(examples), longest, dtype=torch.bool, device=device)
    # Padding is on the right, where no token attends to it.
    for row, example in enumerate(examples):
        whole = [*example.prompt, *example.answer]
        ids[row, : len(whole)] = torch.tensor(whole)
        asked[row, len(example.prompt) : len(whole)] = True
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    chosen = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    summed: torch.Tensor = (chosen * asked[:, 1:]).sum(-1)
    return summed


def dirichlet(rng: random.Random, n: int) -> list[float]:
    """Draw `n` weights from Dirichlet(1/2, ..., 1/2); they sum to one."""
    drawn = [rng.gammavariate(_ALPHA, 1.0) + 1e-12 for _ in range(n)]
    return [d / sum(drawn) for d in drawn]


def optimise(
    parameters: Sequence[torch.nn.Parameter],
    step: Callable[[int], float],
    plan: Plan,
    about: Mapping[str, Any],
    on_step: OnStep,
) -> None:
    """Do what is left of a plan.

    Args:
        parameters: what is trained.
        step: a function that fills the gradients and returns the loss. It may depend on nothing but
            the number of the step, which it is given.
        plan: the run.
        about: what has to be the same in a run that goes on.
        on_step: see `OnStep`.

    Raises:
        ConfigError: the state is that of another run, or cannot be read.
    """
    optimizer = torch.optim.AdamW(
        parameters, lr=plan.peak, betas=(0.9, 0.98), weight_decay=plan.decay
    )
    settings = {
        **about,
        **{n: getattr(plan, n) for n in ("steps", "batch", "peak", "warm_up", "decay", "seed")},
    }
    device = parameters[0].device.type
    done = _resumed(plan.state, settings, parameters, optimizer) if plan.state else 0
    for number in range(done, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.peak * min(
                (number + 1) / plan.warm_up, (1 + math.cos(math.pi * number / plan.steps)) / 2
            )
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = step(number)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if plan.state and ((number + 1) % plan.every == 0 or number + 1 == plan.steps):
            _keep(plan.state, settings, number + 1, parameters, optimizer)
        on_step(number + 1, loss)


def drawn(plan: Plan, number: int) -> random.Random:
    """Return the randomness of one step, which is the same in a run that goes on."""
    return random.Random(f"{plan.seed}/{number}")


def _assign(parameters: Sequence[torch.nn.Parameter], flat: torch.Tensor) -> None:
    """Set the gradients of the parameters to the parts of `flat`, [sum of their sizes]."""
    start = 0
    for parameter in parameters:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()


def _keep(
    path: Path,
    settings: Mapping[str, Any],
    done: int,
    parameters: Sequence[torch.nn.Parameter],
    optimizer: Any,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "settings": repr(sorted(settings.items())),
        "done": done,
        "parameters": [p.detach() for p in parameters],
        "optimizer": optimizer.state_dict(),
    }
    with replacing(path) as file:
        torch.save(state, file)


def _resumed(
    path: Path,
    settings: Mapping[str, Any],
    parameters: Sequence[torch.nn.Parameter],
    optimizer: Any,
) -> int:
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True)
        same = state["settings"] == repr(sorted(settings.items()))
    except Exception as error:
        raise ConfigError(
            f"cannot read {path}: {reason(error)}", hint="remove it to begin again"
        ) from None
    if not same:
        raise ConfigError(
            f"{path} is the state of another run",
            hint="name another file, or remove it to begin again",
        )
    with torch.no_grad():
        for parameter, value in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["done"])
