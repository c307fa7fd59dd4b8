"""VisualGLM and the ChatGLM under it."""
