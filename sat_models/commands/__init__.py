"""What the console commands run."""
