"""Items as the messages of Amazon Bedrock's Converse API, and its replies as agent events: no I/O."""
