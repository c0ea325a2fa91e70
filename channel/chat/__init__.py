"""OpenAI's Chat Completions as a channel: the same agents and turns, told in chunks; nothing is stored."""
