"""Ask any Hugging Face chat model, guarded: python ask.py MODEL QUESTION"""

import asyncio
import sys

from ttsa_guard import Guard, GuardConfig

model, question = sys.argv[1:]
guard = Guard.from_config(
    GuardConfig.parse({"backend": {"use": "transformers", "options": {"model": model}}})
)
outcome = asyncio.run(guard.respond(question))
print(f"{outcome.action}: {outcome.text}")
