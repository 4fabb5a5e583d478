"""The model: vision encoders, connectors, language models, `VisLlama` which joins them, and its weights on disk."""
