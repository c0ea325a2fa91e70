"""Items as what an OpenAI-compatible upstream takes, and its streams as agent events: no I/O."""
