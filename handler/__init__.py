"""How an event reaches the app: composition root, Mangum, local server, command line."""
