"""What is served and deployed: `AGENT=agent.assistant:agent`."""
