"""The Responses channel: OpenAI's `/responses` routes over the host."""
