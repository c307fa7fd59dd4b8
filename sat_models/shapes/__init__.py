"""The bundled models' world: scenes, questions about them, the recipe, and the scores."""
