"""CogVideo: films in tokens, from text or between frames."""
