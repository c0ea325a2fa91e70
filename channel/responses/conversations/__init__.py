"""Conversations: their routes, and the turns that go on with them."""
