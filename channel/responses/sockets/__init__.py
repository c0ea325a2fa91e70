"""WebSocket mode: one observer of turns, two transports."""
