"""Parts that several families share: the decoder, the LLaMA, forms on disk, quantised linears."""
