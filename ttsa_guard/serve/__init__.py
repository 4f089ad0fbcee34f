"""A guarded chat endpoint that speaks OpenAI's protocol, without NeMo Guardrails."""
