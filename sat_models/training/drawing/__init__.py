"""Fine-tuning of painters: images with texts, their latents, the loss on these."""
