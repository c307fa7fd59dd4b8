"""Annotations with boxes -> training samples: readers of each form, objects in pixels, and what is asked about them."""
