"""LLMCompressor: what the library llmcompressor does, in an environment of its own."""
