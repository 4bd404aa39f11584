"""The engine with weights: vLLM."""
