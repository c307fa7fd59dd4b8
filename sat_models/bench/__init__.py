"""Speed: what is measured, on which models, and how the figures are told."""
