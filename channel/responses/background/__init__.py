"""Background responses: begun by one invocation, run by another, looked at and cancelled from any."""
