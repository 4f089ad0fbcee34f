import json

from ttsa_guard.audit import AuditSink
from ttsa_guard.record import SCHEMA, AuditRecord, CandidateRecord


def record(**changes):
    candidate = CandidateRecord("prefill", "opening 1", 0.1, True, True, -0.5, ("short",))
    fields = {
        "id": "1",
        "created": 0.0,
        "action": "swap",
        "reason": "steered",
        "gate_score": 0.9,
        "final_score": 0.1,
    }
    return AuditRecord(**fields, candidates=(candidate,), **changes)


def test_records_are_json_lines_with_a_schema(tmp_path):
    sink = AuditSink(tmp_path / "new" / "audit.jsonl")
    sink.write(record())
    sink.write(record(seed=2))
    first, second = map(json.loads, sink.path.read_text().splitlines())
    assert first == json.loads(json.dumps(record().as_dict()))
    assert first["schema"] == SCHEMA
    assert first["candidates"][0]["flaws"] == ["short"]
    assert second["seed"] == 2


def test_any_text_can_be_written(tmp_path):
    text = "two\nlines, 你好, half a pair: \ud83d"
    sink = AuditSink(tmp_path / "audit.jsonl")
    sink.write(record(texts={"answer": text}))
    [line] = sink.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["texts"]["answer"] == text
    assert "你好" in line
