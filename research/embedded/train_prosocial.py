"""Train what the steerer prosocial needs for the embedded chat model.

Run it with ``python -m research.embedded.train_prosocial``. Everything is generated
(`prosocial_data`), and nothing is downloaded. It takes about three minutes on two cores.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from research import SHIPPED
from research.embedded import prosocial_data
from ttsa_guard.steerers.prosocial import training
from ttsa_guard.steerers.prosocial.adapter import AdapterShape
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES
from ttsa_guard.steerers.prosocial.steerer import HARM_VECTOR, REWARD
from ttsa_guard.steerers.prosocial.training import OnStep, Plan

EXAMPLES, PAIRS = 4000, 800
HARM = Plan(steps=150, batch=16, peak=2e-4, warm_up=10, decay=0.0)
REWARDS = Plan(steps=240, batch=4, peak=3e-3, warm_up=10, decay=0.01)
SHAPE = AdapterShape(
    rank=8, targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
)
KEEP = 0.06
STRENGTH = 2.5
"""The vector is shipped this many times as long, so that subtracting it once is right.

The factor was found on prompts with seed 77.
"""
BETA = 0.05
ALPHA = 6.0
"""The default alpha, found on the same prompts.

The model is surer of itself than large ones are, and has never seen the prosocial sentences.
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m research.embedded.train_prosocial", description=__doc__
    )
    parser.add_argument(
        "--out", type=Path, default=SHIPPED / "prosocial", help="folder of the two files"
    )
    what = "make one of them, or, to compare with, a plain adapter of one attribute"
    parser.add_argument("--only", choices=("harm", "reward", *ATTRIBUTES), help=what)
    parser.add_argument("--conflicts", choices=("project", "average"), default="project")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on the steps, for a trial run"
    )
    args = parser.parse_args()

    model, encode = training.load("embedded", "cpu")
    model.set_attn_implementation("eager")  # the fastest for so small a model on a CPU
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    ) as bar:
        if args.only in (None, "harm"):
            plan = _scaled(HARM, args.scale)
            examples = prosocial_data.harm(EXAMPLES, plan.seed)
            vector = training.harm_vector(
                model, encode, examples, plan, keep=KEEP, on_step=_on(bar, "harm vector", plan)
            )
            (vector * STRENGTH).save(args.out / HARM_VECTOR)
        if args.only != "harm":
            plan = _scaled(REWARDS, args.scale)
            pairs = prosocial_data.pairs(PAIRS, plan.seed)
            on_step = _on(bar, "reward model", plan)
            alone = args.only in ATTRIBUTES
            reward = training.reward(
                model,
                encode,
                pairs,
                plan,
                shape=replace(SHAPE, objectives=0) if alone else SHAPE,
                beta=BETA,
                conflicts=args.conflicts,
                attributes=(args.only,) if alone else ATTRIBUTES,
                on_step=on_step,
            )
            reward.alpha = ALPHA
            reward.save(args.out / (f"{args.only}.safetensors" if alone else REWARD))


def _scaled(plan: Plan, factor: float) -> Plan:
    return Plan(max(1, round(plan.steps * factor)), plan.batch, plan.peak, plan.warm_up, plan.decay)


def _on(bar: Progress, what: str, plan: Plan) -> OnStep:
    task = bar.add_task(what, total=plan.steps)
    return lambda done, loss: bar.update(
        task, completed=done, description=f"{what}, loss {loss:.3f}"
    )


if __name__ == "__main__":
    main()
