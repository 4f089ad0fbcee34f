"""Measure what the pairs of the steerer neighbours are worth, and what poisoned pairs do.

Run it with ``python -m research.neighbours FOLDER --json FILE``, where FOLDER is that of a
benchmark (``ttsa-guard bench run``), whose flagged answers it takes. The arms differ in what is
done with the same pairs:

* ``in context``: they are shown, as the steerer does;
* ``none``: they are not shown, which is the control;
* ``trained``: a low-rank adapter is trained on them, used for this question, and thrown away.

For the other arms the moderator misses one flagged text in five (``missing``), or half of the
answers to the model's questions are flagged ones from other conversations (``poisoned``). What they
let in and what leaves is judged by the moderator without its misses. Of the seconds, those of the
process are taken: other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ttsa_guard.backends.local.controlled import fingerprint
from ttsa_guard.backends.transformers import TransformersBackend
from ttsa_guard.bench import cases as stored
from ttsa_guard.bench.cases import Case
from ttsa_guard.bench.config import BenchConfig
from ttsa_guard.bench.files import CASES, RunMeta
from ttsa_guard.bench.judges import EncoderJudge, Judge, ModeratorJudge, WorldJudge
from ttsa_guard.guard import Guard
from ttsa_guard.messages import Generation, GenerationRequest, Message
from ttsa_guard.moderators.base import Moderator, moderate_safely
from ttsa_guard.plugins import Plugins
from ttsa_guard.profile import Opening
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.neighbours import Neighbour, Neighbours, NeighboursOptions
from ttsa_guard.steerers.prosocial.adapter import Adapter, AdapterShape
from ttsa_guard.verdict import Verdict

STEPS, RATE = 10, 1e-3
"""Steps of one pair each, and AdamW's learning rate; the paper's 1e-4 hardly moves so few."""
SHAPE = AdapterShape(
    rank=16, scale=2.0, objectives=0, targets=("q_proj", "k_proj", "v_proj", "o_proj")
)
MISSED = 0.2


@dataclass(frozen=True)
class Arm:
    """Say what is done with the pairs, and what is wrong with them."""

    name: str
    shown: bool = True
    trained: bool = False
    missed: float = 0.0
    """Share of the flagged texts that gate and guide miss, but for the gate's first check."""
    poisoned: float = 0.0
    """Share of the pairs whose answer is a flagged one of another conversation."""


ARMS = (
    Arm("in context"),
    Arm("none", shown=False),
    Arm("trained", shown=False, trained=True),
    Arm("missing", missed=MISSED),
    Arm("poisoned", poisoned=0.5),
    Arm("poisoned, missing", poisoned=0.5, missed=MISSED),
    Arm("poisoned, missing all", poisoned=0.5, missed=1.0),
)


@dataclass
class Missing:
    """Pass some of the texts that `inner` flags, but none in the first `honest` calls."""

    inner: Moderator
    share: float
    rng: random.Random
    honest: int = 0
    name: str = "missing"
    blocking: bool = False

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        verdicts = await self.inner.moderate(texts, prompts=prompts)
        self.honest -= 1
        if self.honest >= 0:
            return list(verdicts)
        return [
            replace(v, decision="pass", score=0.0)
            if v.flagged and self.rng.random() < self.share
            else v
            for v in verdicts
        ]


class Poisoning:
    """Put texts of others in place of some of the answers that the backend generates."""

    def __init__(self, inner: Any, share: float, texts: Sequence[str], seed: int) -> None:
        self._inner, self._share, self._texts = inner, share, texts
        self._rng = random.Random(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        found: list[Generation] = await self._inner.generate(requests)
        return [
            replace(g, text=self._rng.choice(self._texts), log_likelihood=None)
            if self._rng.random() < self._share
            else g
            for g in found
        ]


@dataclass(eq=False)
class Studied(Neighbours):
    """Run the steerer as one arm, and count what it keeps."""

    arm: Arm
    options: NeighboursOptions
    backend: TransformersBackend
    honest: Moderator
    poison: Sequence[str]
    counts: dict[str, float] = field(default_factory=lambda: {"kept": 0, "bad": 0, "training": 0.0})

    def __post_init__(self) -> None:
        super().__init__(self.options)

    async def _pairs(
        self, task: Task, questions: Sequence[str], openings: Sequence[Opening]
    ) -> list[Neighbour]:
        if self.arm.poisoned:
            poisoning = Poisoning(task.backend, self.arm.poisoned, self.poison, task.seed)
            task = replace(task, backend=poisoning)
        pairs = await super()._pairs(task, questions, openings)
        verdicts = await moderate_safely(
            self.honest, [p.answer for p in pairs], prompts=[task.messages[-1].content] * len(pairs)
        )
        self.counts["kept"] += len(pairs)
        self.counts["bad"] += sum(v.flagged for v in verdicts)
        return pairs

    async def _answers(self, task: Task, pairs: Sequence[Neighbour], asked: str) -> list[Candidate]:
        shown = pairs if self.arm.shown else []
        if not self.arm.trained:
            return await super()._answers(task, shown, asked)
        started = time.process_time()
        adapter = await self._trained(pairs)
        self.counts["training"] += time.process_time() - started
        with adapter.attached(self.backend._engine.model):
            return await super()._answers(task, shown, asked)

    async def _trained(self, pairs: Sequence[Neighbour]) -> Adapter:
        examples = []
        for pair in pairs:
            prompt = await self.backend.render(Message.conversation(pair.question))
            answer = self.backend._engine.tokenizer(pair.answer, add_special_tokens=False)
            end = [min(self.backend._engine.ends)]
            examples.append((list(prompt.ids), [*answer["input_ids"], *end]))
        return await self.backend._run(trained, self.backend._engine.model, examples)


def trained(model: torch.nn.Module, examples: Sequence[tuple[list[int], list[int]]]) -> Adapter:
    """Return a new adapter after `STEPS` steps on (prompt, answer) pairs, one a step."""
    torch.manual_seed(0)
    adapter = Adapter(model, SHAPE, base="")
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=RATE)
    with adapter.attached(model), torch.enable_grad():
        for step in range(STEPS):
            prompt, answer = examples[step % len(examples)]
            ids = torch.tensor([prompt + answer])
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
            loss = torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return adapter.requires_grad_(False)


@dataclass
class NeighboursStudy:
    """The cases of one benchmark, and what is needed to mend and judge them."""

    config: BenchConfig
    cases: Sequence[Case]
    options: NeighboursOptions
    backend: TransformersBackend
    judge: Judge

    async def row(self, arm: Arm, case: Case) -> dict[str, Any]:
        """Mend one answer in one arm, and return numbers."""
        started = time.process_time()
        guard = Guard.from_config(
            self.config.guard(None, case.item.policy), plugins=Plugins(), backend=self.backend
        )
        gate, guide, rng = guard.gate, guard.guide, random.Random(case.id)
        if arm.missed:
            guard.gate = Missing(gate, arm.missed, rng, honest=1)
            guard.guide = Missing(guide, arm.missed, rng)
        poison = [other.answer for other in self.cases if other is not case]
        steerer = Studied(arm, self.options, self.backend, guide, poison)
        guard.steerers = guard.steerers_for_harm = (steerer,)
        outcome = await guard.review(case.messages, case.answer)
        seconds = time.process_time() - started
        [verdict] = await moderate_safely(gate, [outcome.text], prompts=[case.item.user])
        judged = await self.judge.judge(case, outcome.text, verdict)
        swapped = outcome.action == "swap"
        return {
            "arm": arm.name,
            "case": case.id,
            "swapped": swapped,
            "flagged": verdict.flagged,
            "good": swapped and judged.good,
            "helpful": swapped and judged.good and judged.helpful,
            "refusal": swapped and bool(judged.refusal),
            "generations": outcome.record.generations,
            "seconds": round(seconds, 3),
            **self._rounded(steerer.counts),
        }

    @staticmethod
    def _rounded(counts: dict[str, float]) -> dict[str, float]:
        return {name: round(value, 3) for name, value in counts.items()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return sums by arm, as lines of text."""
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of_arm = [row for row in rows if row["arm"] == arm]
        sums = {key: sum(row[key] for row in of_arm) for key in of_arm[0] if key not in _WORDS}
        lines.append(f"{arm}: {len(of_arm)} answers, " + ", ".join(_told(*s) for s in sums.items()))
    return "\n".join(lines)


_WORDS = ("arm", "case")


def _told(name: str, value: float) -> str:
    return f"{name} {value:.1f}" if isinstance(value, float) else f"{name} {value}"


async def measure(folder: Path, options: NeighboursOptions, generations: int, out: Path) -> str:
    """Run all arms on the flagged answers of a benchmark, and return a table."""
    config = BenchConfig.model_validate(RunMeta.load(folder).config)
    budget = config.budget.model_copy(update={"generations": generations})
    config = config.model_copy(update={"budget": budget})
    cases = [case for case in stored.load(folder / CASES) if case.flagged]
    backend = Plugins().make("backends", config.backend)
    assert isinstance(backend, TransformersBackend)
    study = NeighboursStudy(config, cases, options, backend, _judge(config, cases))
    before = fingerprint(backend._engine.model)
    rows = []
    with out.open("w", encoding="utf-8") as file:
        for case in cases:
            for arm in ARMS:
                rows.append(await study.row(arm, case))
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
    assert fingerprint(backend._engine.model) == before, "an adapter was left behind"
    return table(rows)


def _judge(config: BenchConfig, cases: Sequence[Case]) -> Judge:
    if all(case.item.truth for case in cases):
        return WorldJudge()
    assert config.judge
    moderator = Plugins().make("moderators", config.judge)
    kind = EncoderJudge if moderator.name == "encoder_judge" else ModeratorJudge
    return kind(moderator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of a benchmark")
    parser.add_argument("--options", type=json.loads, default={}, help="of the steerer, as JSON")
    parser.add_argument("--generations", type=int, default=16, help="budget for one answer")
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    given = parser.parse_args()
    options = NeighboursOptions(**given.options)
    print(asyncio.run(measure(given.folder, options, given.generations, given.json)))


if __name__ == "__main__":
    main()
