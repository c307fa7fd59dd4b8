"""CogAgent."""
