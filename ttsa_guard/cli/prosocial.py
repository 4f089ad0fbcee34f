"""``ttsa-guard prosocial``: learn what the steerer of that name needs, for any Hugging Face chat
model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ttsa_guard.cli import common
from ttsa_guard.cli.common import out, plain
from ttsa_guard.errors import ConfigError
from ttsa_guard.files import ready_file, ready_folder

if TYPE_CHECKING:
    from ttsa_guard.steerers.prosocial.adapter import AdapterShape
    from ttsa_guard.steerers.prosocial.data import ExampleEncoder

app = typer.Typer(no_args_is_help=True)
Model = Annotated[
    str,
    typer.Argument(
        help="'embedded', a Hugging Face name, or a path.",
        show_default=False,
        autocompletion=common.model_names,
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the optimizer.")]
Peak = Annotated[float, typer.Option(min=0, help="Highest learning rate.")]
State = Annotated[
    Path | None,
    typer.Option(
        help="Keep the state here; a run that was stopped goes on from it.", show_default=False
    ),
]
Rank = Annotated[int, typer.Option(min=1, help="Rank of the low-rank adapter.")]
Device = Annotated[str, typer.Option(help="'auto', 'cpu' or 'cuda'.")]
Targets = Annotated[str, typer.Option(help="Linear layers that get an adapter.")]


@app.callback()
def _group() -> None:
    """Learn a harm vector and a preference-aware reward model for the steerer 'prosocial'."""


@app.command()
def harm_vector(
    model: Model,
    examples: Annotated[
        Path, typer.Option(help="JSON lines with 'prompt' and 'answer': harm.", show_default=False)
    ],
    file: Annotated[
        Path, typer.Option("--out", help="Write the vector here (safetensors).", show_default=False)
    ],
    regulated: Annotated[
        Path | None,
        typer.Option(help="Also write the model without it to this folder.", show_default=False),
    ] = None,
    strength: Annotated[
        float, typer.Option(min=0, help="How many times it is subtracted there.")
    ] = 1.0,
    method: Annotated[
        Literal["full", "lora"], typer.Option(help="Tune all weights, or a low-rank adapter.")
    ] = "full",
    keep: Annotated[
        float, typer.Option(help="Share of the entries that is kept, those of largest magnitude.")
    ] = 0.1,
    within: Annotated[
        Literal["all", "layer"], typer.Option(help="Of which entries that is a share.")
    ] = "all",
    steps: Steps = 500,
    batch: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 16,
    peak: Peak = 1e-4,
    rank: Rank = 16,
    targets: Targets = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
    state: State = None,
    device: Device = "auto",
) -> None:
    """Tune a copy of a model on examples of harm, and keep the difference of the two.

    The difference is the harm vector, which the steerer takes away from the model.

    Example: ttsa-guard prosocial harm-vector MODEL --examples harm.jsonl --out harm.safetensors
    """
    from ttsa_guard.steerers.prosocial import training
    from ttsa_guard.steerers.prosocial.data import read_answers

    if not 0 < keep <= 1:  # known before the training, not only after it
        raise ConfigError("--keep is no share", hint="give one in (0, 1]")
    ready_file(file, make=True)
    if regulated:
        ready_folder(regulated, "--regulated")
    read = read_answers(examples)
    with _loaded(model, device) as (loaded, encode):
        with _bar("tuning on harm", steps, state) as on_step:
            vector = training.harm_vector(
                loaded,
                encode,
                read,
                training.Plan(steps=steps, batch=batch, peak=peak, state=state),
                method=method,
                shape=_shape(rank, targets),
                keep=keep,
                within=within,
                on_step=on_step,
            )
        vector.save(file)
        told = f"{len(vector)} entries, norm {vector.norm():.3g}, written to {file}"
        out.print(plain(told), soft_wrap=True)
        if regulated:
            vector.subtract(loaded, strength)
            loaded.save_pretrained(regulated)
            encode.tokenizer.save_pretrained(regulated)
            told = f"the model without {strength:g} times it is in {regulated}"
            out.print(plain(told), soft_wrap=True)


@app.command()
def train(
    model: Model,
    pairs: Annotated[
        list[str],
        typer.Option(
            help=(
                "JSON lines, .gz or not: 'prompt', 'chosen', 'rejected', 'attribute';"
                " ATTRIBUTE=FILE where the lines have none. Several times."
            ),
            show_default=False,
        ),
    ],
    file: Annotated[
        Path,
        typer.Option("--out", help="Write the adapter here (safetensors).", show_default=False),
    ],
    steps: Steps = 500,
    batch: Annotated[int, typer.Option(min=1, help="Pairs of each attribute a step.")] = 8,
    peak: Peak = 5e-4,
    beta: Annotated[float, typer.Option(min=0, help="Sharpness of the pairwise losses.")] = 0.01,
    alpha: Annotated[
        float, typer.Option(min=0, help="Weight in decoding that is written into the file.")
    ] = 1.0,
    conflicts: Annotated[
        Literal["project", "average"],
        typer.Option(help="What is done with gradients that contradict each other."),
    ] = "project",
    rank: Rank = 4,
    targets: Targets = "q_proj,k_proj,v_proj",
    state: State = None,
    device: Device = "auto",
) -> None:
    """Train the reward model: one adapter of the model, conditioned on the user's preferences.

    Example: ttsa-guard prosocial train MODEL --pairs mine.jsonl --pairs sensitivity=hh.jsonl.gz
        --out reward.safetensors
    """
    from ttsa_guard.steerers.prosocial import training
    from ttsa_guard.steerers.prosocial.data import read_pairs

    ready_file(file, make=True)
    read = [pair for named in pairs for pair in read_pairs(*_named(named))]
    with (
        _loaded(model, device) as (loaded, encode),
        _bar("training the reward model", steps, state) as on_step,
    ):
        adapter = training.reward(
            loaded,
            encode,
            read,
            training.Plan(steps=steps, batch=batch, peak=peak, state=state),
            shape=_shape(rank, targets),
            beta=beta,
            conflicts=conflicts,
            on_step=on_step,
        )
    adapter.alpha = alpha
    adapter.save(file)
    parameters = sum(p.numel() for p in adapter.parameters())
    out.print(plain(f"{parameters} parameters, written to {file}"), soft_wrap=True)


def _shape(rank: int, targets: str) -> AdapterShape:
    from ttsa_guard.steerers.prosocial.adapter import AdapterShape

    return AdapterShape(rank=rank, targets=tuple(targets.split(",")))


def _named(file: str) -> tuple[Path, str | None]:
    """Split FILE or ATTRIBUTE=FILE into the file and the attribute, if it names one."""
    attribute, _, rest = file.partition("=")
    return (Path(rest), attribute) if rest and not Path(file).exists() else (Path(file), None)


@contextmanager
def _loaded(model: str, device: str) -> Iterator[tuple[Any, ExampleEncoder]]:
    """Return a model to train and the encoder of its examples, with other libraries quiet."""
    from ttsa_guard.steerers.prosocial import training

    with common.quiet():
        common.hide_loading_bars()
        yield training.load(model, device)


@contextmanager
def _bar(what: str, steps: int, state: Path | None) -> Iterator[Callable[[int, float], None]]:
    how = (
        f"the same command goes on from the last state in {state}"
        if state
        else "nothing is kept; with --state FILE, the same command goes on from there"
    )
    with common.stoppable(how), common.progress() as bar:
        task = bar.add_task(what, total=steps)
        yield lambda done, loss: bar.update(
            task, completed=done, description=f"{what}, loss {loss:.3f}"
        )
