"""Text to train on: reading, splitting, tokenizing, caching, batching."""
