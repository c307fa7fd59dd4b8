"""The bundled painter: CogView2's way of writing an image in codes, with a plan before them."""
