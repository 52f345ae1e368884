"""Greenlight's example service: classifies 8x8 images of handwritten digits with PyTorch over HTTP."""
