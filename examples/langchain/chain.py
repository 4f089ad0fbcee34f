"""A LangChain runnable with the guard behind its model: python chain.py "How do I draw an owl?" """

import sys
from pathlib import Path

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from nemoguardrails import RailsConfig
from nemoguardrails.integrations.langchain.runnable_rails import RunnableRails

CONFIG = Path(__file__).parents[1] / "configs" / "colang_1"


def chain(config: Path = CONFIG) -> Runnable:
    """What is asked, through the guarded model of `config`, as text."""
    prompt = ChatPromptTemplate.from_messages([("user", "{question}")])
    return prompt | RunnableRails(RailsConfig.from_path(str(config))) | StrOutputParser()


if __name__ == "__main__":
    print(chain().invoke({"question": sys.argv[1]}))
