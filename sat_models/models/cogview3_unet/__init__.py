"""CogView3-Base, CogView3-Relay and their distilled forms: UNets that run in diffusers."""
