"""Training: a LoRA adapter out of a dataset, in stages that go on where a killed attempt was."""
