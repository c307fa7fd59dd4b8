"""Metrics, and evaluation on tasks."""
