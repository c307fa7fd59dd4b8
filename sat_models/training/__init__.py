"""Fine-tuning, and the synthetic world that the embedded model is trained on."""
