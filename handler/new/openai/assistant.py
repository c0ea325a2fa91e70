"""A model behind OpenAI's wire: OpenAI's own, or one of Ollama, vLLM, a gateway.

It has no tools of its own; those of its clients, it calls. Its settings, in the environment:
OPENAI_API_KEY; OPENAI_BASE_URL, where the model is not OpenAI's; MODEL, which is gpt-5-mini unless
it says otherwise. Without code of your own, AGENT=openai:<model>@<base url> is the same.
"""

from os import getenv

from channel.agents.openai_upstream import upstream_agent


agent = upstream_agent(
    getenv("MODEL", "gpt-5-mini"),
    getenv("OPENAI_BASE_URL", "https://api.openai.com/v1"),
    api_key=getenv("OPENAI_API_KEY"),
    instructions="Answer in a sentence or two. Look at the clock when you are asked for the time.",
)
