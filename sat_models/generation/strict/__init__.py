"""Answers of a form that was asked for: JSON by a schema, a regex, one of several texts, boxes."""
