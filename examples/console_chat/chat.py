"""Chat through NeMo Guardrails: python chat.py [CONFIG_FOLDER]"""

import sys
from pathlib import Path

from nemoguardrails import LLMRails, RailsConfig

CONFIG = Path(__file__).parents[1] / "configs" / "colang_1"


def chat(rails: LLMRails) -> None:
    messages = []
    while True:
        messages.append({"role": "user", "content": input("you: ")})
        result = rails.generate(messages=messages, options={"output_vars": ["ttsa_outcome"]})
        messages += result.response
        adjusted = result.output_data["ttsa_outcome"].metadata["action"] != "pass"
        print(f"bot: {messages[-1]['content']}{'  [adjusted]' if adjusted else ''}")


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else str(CONFIG)
    try:
        chat(LLMRails(RailsConfig.from_path(folder)))
    except (EOFError, KeyboardInterrupt):
        print()
