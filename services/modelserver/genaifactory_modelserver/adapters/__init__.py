"""LoRA adapters: fetched, checked, kept on disk, loaded into an engine."""
