"""The host, the channel contract, the Responses protocol and agents: runs anywhere, knows no cloud."""
