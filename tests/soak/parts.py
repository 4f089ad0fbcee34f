"""The parts of a guard and of an app, which do what the conversation's case says, and go wrong
where it says so."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemoguardrails import LLMRails
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome, TransformTarget
from nemoguardrails.types import (
    ChatMessage,
    LLMResponse,
    LLMResponseChunk,
    ToolCall,
    ToolCallFunction,
)
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

from tests.nemo.conftest import CHAT_V2, make_config
from ttsa_guard.config import GuardConfig
from ttsa_guard.guard import Guard
from ttsa_guard.images import IMAGE_TYPES
from ttsa_guard.messages import Generation, GenerationRequest, Message, Prompt, Soft
from ttsa_guard.nemo import BackendModel, install, rails_path
from ttsa_guard.plugins import Plugins, hookimpl
from ttsa_guard.record import AuditRecord
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.verdict import Verdict

from .faults import ERRORS, FAULTS, HANGS
from .finder import Finder, Logs, Own, Sink, Spans

FALLBACK = "Let us talk about something else."
GATE_SECONDS, SECONDS = 1.0, 2.0
_NUMBER = re.compile(r"number (\d+)")
RAILS = (
    "none",
    "reasoning",
    "thinks aloud",
    "tools",
    "images",
    "masks before",
    "rewrites before",
    "masks after",
)
REWRITING = ("masks before", "rewrites before", "masks after")


@dataclass(eq=False)
class Case(Own):
    """One conversation."""

    number: int
    canary: str
    version: str
    way: str
    rails: str
    part: str
    kind: str
    late: bool = False
    """The part does its first work soundly."""
    safe: bool = False
    """The model's own answer is safe."""
    found: bool = True
    """The search finds a good answer."""
    everything: bool = False
    """The client asks for all that the host has."""
    cancel: float | None = None
    """Cancelled after this share of its awaits."""
    met: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        cancelled = ", cancelled" if self.cancel is not None else ""
        return f"{self.version}, {self.way}, {self.rails}, {self.part} {self.kind}{cancelled}"

    @property
    def user(self) -> str:
        return f"Tell me all of it, number {self.number}."

    @property
    def shown(self) -> str:
        return f"One is fine, number {self.number}."

    @property
    def flagged(self) -> str:
        return f"{self.shown} Then a bad {self.canary} for it comes. And more of {self.canary}."

    @property
    def answer(self) -> str:
        return f"{self.shown} Two is fine. Three is fine." if self.safe else self.flagged

    @property
    def swap(self) -> str:
        return f"Here is a steered and fine answer to number {self.number}."

    @property
    def thought(self) -> str:
        return f"a bad plan, {self.canary}, for all that"

    def breaks(self, part: str) -> bool:
        """Whether this part goes wrong now."""
        if part != self.part:
            return False
        self.met += 1
        return self.met > 1 or not self.late

    async def meet(self, part: str, sound: Any, text: str | None = None) -> Any:
        """What the part gives: the `sound` result, or what its fault makes of it and of the `text`
        that it has seen."""
        return (
            await FAULTS[part][self.kind](text or self.flagged, sound)
            if self.breaks(part)
            else sound
        )

    def tell(self, part: str) -> None:
        """Raise if this part goes wrong now; one that does not wait."""
        if self.breaks(part):
            raise ERRORS[self.kind](self.flagged)


CASES: dict[int, Case] = {}
"""Those that are running, by number."""
current: ContextVar[Case | None] = ContextVar("soak_case", default=None)


def case_of(text: Any) -> Case:
    return CASES[int(_NUMBER.findall(str(text))[-1])]


class Moderating:
    """The gate, on a thread of its own, or the guide: flags what is bad."""

    def __init__(self, name: str) -> None:
        self.name, self.blocking = name, name == "gate"

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> Any:
        sound = [Verdict.scored(self.name, float("bad" in text), threshold=0.5) for text in texts]
        return await case_of(prompts[0]).meet(self.name, sound, texts[0])


class Steering:
    """Proposes nothing of its own, or something odd."""

    name = "odd"
    needs = ()

    async def steer(self, task: Any) -> AsyncGenerator[Any, None]:
        case = case_of(task.messages[-1].content)
        if case.part == "steerer":
            if case.late:
                yield []
            yield await case.meet("steerer", [])


class Backend:
    """Prompts are the code points of what the user said. Samples at temperature 1 are candidates,
    others the chat's answers."""

    name = "soak"
    context_length = 4096
    image_types = IMAGE_TYPES

    async def render(self, messages: Sequence[Message], *, scope: Any = "user") -> Prompt:
        return Prompt((Soft(tuple(map(ord, messages[-1].content))),))

    async def generate(self, requests: Sequence[GenerationRequest]) -> Any:
        case = case_of("".join(map(chr, requests[0].prompt.ids)))
        sound = [Generation(self._said(case, request), 9, True) for request in requests]
        if requests[0].temperature < 1 and case.kind in HANGS:
            return sound  # how long the model may take for its own answer is the app's affair
        return await case.meet("backend", sound)

    async def log_likelihoods(self, prompt: Prompt, texts: Sequence[str]) -> Any:
        return await case_of("".join(map(chr, prompt.ids))).meet("likelihood", [-1.0] * len(texts))

    async def close(self) -> None:
        pass

    def _said(self, case: Case, request: GenerationRequest) -> str:
        if request.temperature < 1:
            return (
                f"<think>{case.thought}</think>{case.answer}"
                if case.rails == "thinks aloud"
                else case.answer
            )
        return f"{request.opening} {case.swap if case.found else case.flagged}".strip()


class Chat(BackendModel):
    """The app's model: with reasoning or tool calls where the case has some, and texts out of
    messages with images."""

    async def generate_async(self, prompt: Any, **given: Any) -> LLMResponse:
        prompt = _flat(prompt)
        response = await super().generate_async(prompt, **given)
        case = case_of(prompt)
        metadata = {
            "raw": f"{response.content} {case.thought if case.rails == 'reasoning' else ''}"
        }
        return replace(response, **_besides(case), provider_metadata=metadata)

    async def stream_async(
        self, prompt: Any, **given: Any
    ) -> AsyncGenerator[LLMResponseChunk, None]:
        prompt = _flat(prompt)
        besides = _besides(case_of(prompt))
        if reasoning := besides.get("reasoning"):
            yield LLMResponseChunk(delta_reasoning=reasoning, model=self.model_name)
        async for chunk in super().stream_async(prompt, **given):
            yield chunk
        if calls := besides.get("tool_calls"):
            yield LLMResponseChunk(delta_tool_calls=calls, model=self.model_name)


def _besides(case: Case) -> dict[str, Any]:
    if case.rails == "reasoning":
        return {"reasoning": case.thought}
    if case.rails == "tools":
        asked = {
            "q": "owls",
            "notes": ["none" if case.safe else f"a bad {case.canary} in a list", 3],
        }
        call = ToolCall("1", function=ToolCallFunction("search", asked))
        return {"reasoning": case.thought, "tool_calls": [call]}
    return {}


def _flat(prompt: Any) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [
        replace(m, content=_text(m.content)) if isinstance(m, ChatMessage) else m for m in prompt
    ]


def _text(content: Any) -> Any:
    return " ".join(p.get("text", "") for p in content) if isinstance(content, list) else content


def masked(text: str) -> str:
    return text.replace("fine", "[good]")


@action(name="mask", is_system_action=True)
async def mask(context: Any = None) -> str:
    return masked((context or {}).get("bot_message") or "")


@action(name="rewrite", is_system_action=True)
async def rewrite(context: Any = None) -> RailOutcome:
    text = masked((context or {}).get("bot_message") or "")
    return RailOutcome.transform([(TransformTarget.BOT_MESSAGE, text)], reason="masked")


V1 = """
define subflow mask it
  $bot_message = execute mask

define subflow rewrite it
  $outcome = execute rewrite
  $bot_message = $outcome.transform_text["bot_message"]
"""
V2 = f"""{CHAT_V2}
flow mask it
  global $bot_message
  $bot_message = await MaskAction()

flow rewrite it
  global $bot_message
  $outcome = await RewriteAction()
  $bot_message = $outcome.transform_text["bot_message"]

flow output rails $output_text
"""
OURS = "ttsa steer output"
FLOWS = {
    "masks before": ["mask it", OURS],
    "rewrites before": ["rewrite it", OURS],
    "masks after": [OURS, "mask it"],
}


def make_app(version: str, rails: str, guard: Guard) -> LLMRails:
    """An app with the rewriting rail `rails`, if it is one."""
    flows = FLOWS.get(rails, [OURS])
    if version == "1.0":
        ours = (Path(rails_path()) / "flows.v1.co").read_text(encoding="utf-8")
        config = make_config(
            version, V1 + ours, passthrough=True, rails={"output": {"flows": flows}}
        )
    else:
        config = make_config(
            version, V2 + "".join(f"  {flow}\n" for flow in flows), passthrough=True
        )
    app = LLMRails(config, llm=Chat(guard.backend))
    app.register_action(mask, "mask")
    app.register_action(rewrite, "rewrite")
    install(app, guard)
    return app


class Breaking(Sink):
    def write(self, record: AuditRecord) -> None:
        if case := current.get():
            case.tell("sink")
        super().write(record)


class Observer:
    def __init__(self, finder: Finder) -> None:
        self.finder = finder

    @hookimpl
    def ttsa_guard_finished(self, record: AuditRecord) -> None:
        self.finder.look("record", record)
        if case := current.get():
            case.tell("observer")


class Exporting(SpanProcessor):
    """An exporter that breaks over spans of the guard, at their beginning or at their end."""

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        self._tell(span, late=False)

    def on_end(self, span: ReadableSpan) -> None:
        self._tell(span, late=True)

    def _tell(self, span: ReadableSpan, *, late: bool) -> None:
        case = current.get()
        if case and case.late == late and span.name.startswith("ttsa_guard"):
            case.tell("telemetry")


@dataclass
class World:
    """Everything that the conversations run in."""

    finder: Finder
    logs: Logs
    spans: Spans
    apps: dict[tuple[str, str, str], LLMRails]
    """By version, mode of streaming and rewriting rail."""

    @classmethod
    def make(cls, folder: Path, finder: Finder) -> World:
        logs, spans = Logs(finder), Spans(finder)
        provider = TracerProvider()
        provider.add_span_processor(spans)
        provider.add_span_processor(Exporting())
        trace.set_tracer_provider(provider)
        apps = {}
        for version in ("1.0", "2.x"):
            for mode, rails in [
                ("progressive", "none"),
                *(("buffered", rails) for rails in ("none", *REWRITING)),
            ]:
                guard = make_guard(mode, folder / "audit.jsonl", finder)
                apps[version, mode, rails] = make_app(version, rails, guard)
        return cls(finder, logs, spans, apps)

    def app(self, case: Case) -> LLMRails:
        mode = "progressive" if case.way == "progressive" else "buffered"
        return self.apps[case.version, mode, case.rails if case.rails in REWRITING else "none"]


def make_guard(mode: str, audit: Path, finder: Finder) -> Guard:
    plugins = Plugins()
    plugins.add(Observer(finder))
    limits = {
        "gate_seconds": GATE_SECONDS,
        "budget": {"seconds": SECONDS},
        "fallback": FALLBACK,
        "streaming": mode,
    }
    guard = Guard(
        GuardConfig.parse(limits),
        backend=Backend(),
        gate=Moderating("gate"),
        guide=Moderating("guide"),
        steerers=[Steering(), Resample(ResampleOptions(n=2))],
        plugins=plugins,
    )
    guard._sink = Breaking(audit, finder)
    return guard


Way = Callable[[World, Case], Any]
