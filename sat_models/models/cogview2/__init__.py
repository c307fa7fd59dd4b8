"""CogView2: an image in tokens from text, and two ways to make it three times as large."""
