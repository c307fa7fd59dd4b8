"""Vision towers: pixels to features."""
