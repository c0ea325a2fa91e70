"""Functions that the tests of the local function URL run, each in a process of its own."""
