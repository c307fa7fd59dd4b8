"""One decode step: through hooks, as one flat sequence, through C kernels, as CUDA graphs."""
