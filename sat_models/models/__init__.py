"""Which mixins make which model."""
