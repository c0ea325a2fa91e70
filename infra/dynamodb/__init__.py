"""The DynamoDB store: key schema and codec (pure), and the store around them."""
