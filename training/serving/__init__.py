"""The OpenAI-compatible server and weight quantization."""
